#define _GNU_SOURCE
#include "hot_asym.h"

#include <string.h>

#include "ct.h"
#include "hash.h"

static const struct {
    CK_MECHANISM_TYPE mechanism;
    CK_ULONG mgf, size;
} of_hash[HASHES] = {
    [HASH_SHA1] = {CKM_SHA_1, CKG_MGF1_SHA1, 20},
    [HASH_SHA256] = {CKM_SHA256, CKG_MGF1_SHA256, 32},
    [HASH_SHA384] = {CKM_SHA384, CKG_MGF1_SHA384, 48},
    [HASH_SHA512] = {CKM_SHA512, CKG_MGF1_SHA512, 64},
};

typedef CK_RV (*one_fn)(hot_lane *, hot_item *, CK_MECHANISM *);

/* A session that died while it lay idle says nothing about the operation: once more, on a fresh one. */
static inline CK_RV run(one_fn one, hot_lane *lane, hot_item *item, CK_MECHANISM *mechanism)
{
    CK_RV rv = one(lane, item, mechanism);

    return hot_session_died(rv) ? one(lane, item, mechanism) : rv;
}

static CK_RV sign_one(hot_lane *lane, hot_item *item, CK_MECHANISM *mechanism)
{
    CK_ULONG written = item->out_len;
    CK_RV rv = hot_session(lane, 0);

    if (rv != CKR_OK)
        return hot_failed(lane, item, rv, STEP_OPEN);
    rv = lane->f->C_SignInit(lane->session, mechanism, item->key);
    if (rv != CKR_OK)
        return hot_failed(lane, item, rv, STEP_SIGN_INIT);
    rv = lane->f->C_Sign(lane->session, (CK_BYTE *)item->in, item->in_len, item->out, &written);
    if (rv == CKR_BUFFER_TOO_SMALL || (rv == CKR_OK && written != item->out_len))
        rv = KMS_RV_LENGTH;
    if (rv != CKR_OK)
        return hot_failed(lane, item, rv, STEP_SIGN);
    item->rv = CKR_OK;
    return CKR_OK;
}

CK_RV hot_sign(hot_lane *lane, hot_item *item, CK_MECHANISM_TYPE type, int hash)
{
    CK_RSA_PKCS_PSS_PARAMS pss = {of_hash[hash].mechanism, of_hash[hash].mgf, of_hash[hash].size};
    CK_MECHANISM mechanism = {type, NULL, 0};

    if (type == CKM_RSA_PKCS_PSS) {
        mechanism.pParameter = &pss;
        mechanism.ulParameterLen = sizeof pss;
    }
    return run(sign_one, lane, item, &mechanism);
}

static CK_RV decrypt_one(hot_lane *lane, hot_item *item, CK_MECHANISM *mechanism)
{
    CK_ULONG written = item->out_len;
    CK_RV rv = hot_session(lane, 0);

    if (rv != CKR_OK)
        return hot_failed(lane, item, rv, STEP_OPEN);
    rv = lane->f->C_DecryptInit(lane->session, mechanism, item->key);
    if (rv != CKR_OK)
        return hot_failed(lane, item, rv, STEP_DECRYPT_INIT);
    rv = lane->f->C_Decrypt(lane->session, (CK_BYTE *)item->in, item->in_len, item->out, &written);
    if (rv == CKR_OK && written > item->in_len)
        rv = KMS_RV_LENGTH;
    if (rv != CKR_OK)
        return hot_failed(lane, item, rv, STEP_DECRYPT);
    item->out_len = written;
    item->rv = CKR_OK;
    return CKR_OK;
}

CK_RV hot_rsa_decrypt(hot_lane *lane, hot_item *item, int hash, int raw)
{
    /* The label is empty and its pointer NULL, for once: SoftHSM refuses any other. */
    CK_RSA_PKCS_OAEP_PARAMS oaep = {of_hash[hash].mechanism, of_hash[hash].mgf, CKZ_DATA_SPECIFIED, NULL, 0};
    CK_MECHANISM with_oaep = {CKM_RSA_PKCS_OAEP, &oaep, sizeof oaep}, without = {CKM_RSA_X_509, NULL, 0};
    CK_RV rv = run(decrypt_one, lane, item, raw ? &without : &with_oaep);

    if (rv == CKR_OK && raw) {
        /* How many bytes came is as secret as they are: leading zeros are what Manger's attack asks about. */
        ct_move_back(item->out, item->in_len, item->in_len - item->out_len);
        item->out_len = item->in_len;
    }
    return rv;
}

int hot_ciphertext_refused(CK_RV rv)
{
    /* NSS says ARGUMENTS_BAD to a number that is not below the modulus. */
    return hot_tag_refused(rv) || rv == CKR_FUNCTION_FAILED || rv == CKR_ARGUMENTS_BAD || rv == CKR_DATA_INVALID ||
           rv == CKR_DATA_LEN_RANGE;
}
