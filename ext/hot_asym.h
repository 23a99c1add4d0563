/* Signing and RSA decryption over PKCS#11, one operation at a time, to be run without the GIL. Sessions and failures as in hot.h. */
#ifndef KMS_HOT_ASYM_H
#define KMS_HOT_ASYM_H

#include "hot.h"

/* C_SignInit and C_Sign with item->key over item->in. The output must be item->out_len bytes, no more and no less. `hash` (hash.h) is
 * looked at for CKM_RSA_PKCS_PSS only: MGF1 of that hash, and a salt as long as it. */
CK_RV hot_sign(hot_lane *lane, hot_item *item, CK_MECHANISM_TYPE type, int hash);

/* C_DecryptInit and C_Decrypt of item->in. Room for an output is item->out_len, which becomes the length of the output. With `raw`:
 * CKM_RSA_X_509, and a shorter output is filled up with zeros in front, to the length of the input. Otherwise: CKM_RSA_PKCS_OAEP with
 * `hash`. */
CK_RV hot_rsa_decrypt(hot_lane *lane, hot_item *item, int hash, int raw);

/* True when C_Decrypt's `rv` is one that an RSA ciphertext can cause. */
int hot_ciphertext_refused(CK_RV rv);

#endif
