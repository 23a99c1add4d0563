/* The hot path: AES-GCM over PKCS#11 in plain C, to be run without the GIL. Nothing here touches a Python object.
 *
 * Where a token offers the message functions of PKCS#11 3.0, a run sets up each key once (C_MessageEncryptInit) and not each message: on
 * NSS, batches of small messages are 4 times as fast.
 *
 * A lane is one session, used by one thread for the length of a call. Whatever a C_ function answers other than CKR_OK costs the lane its
 * session (RELIABILITY R-2: SoftHSM leaves operations open behind errors); the next item gets a fresh one.
 */
#ifndef KMS_HOT_H
#define KMS_HOT_H

#include <stddef.h>

#include "ck.h"

enum { GCM_IV = 12, GCM_TAG = 16 };

/* Which call a return code came from. */
enum {
    STEP_NONE,
    STEP_OPEN,
    STEP_ENCRYPT_INIT,
    STEP_ENCRYPT,
    STEP_DECRYPT_INIT,
    STEP_DECRYPT,
    STEP_DERIVE,
    STEP_READ,
    STEP_DESTROY,
    STEP_SIGN_INIT,
    STEP_SIGN,
    STEP_MESSAGE_ENCRYPT_INIT,
    STEP_ENCRYPT_MESSAGE,
    STEP_MESSAGE_DECRYPT_INIT,
    STEP_DECRYPT_MESSAGE,
    STEP_SOFT
};

/* Return codes of our own, in the range that PKCS#11 leaves to vendors. */
#define KMS_RV_LENGTH (0x80000000UL | 0x4b4d5301UL)  /* the module wrote another number of bytes than it must */
#define KMS_RV_RETIRED (0x80000000UL | 0x4b4d5302UL) /* the key was retired while a call was on its way */
#define KMS_RV_RANDOM (0x80000000UL | 0x4b4d5303UL)  /* getrandom failed */
#define KMS_RV_CRYPTO (0x80000000UL | 0x4b4d5304UL)  /* OpenSSL failed for another reason than a wrong tag */
#define KMS_RV_MEMORY (0x80000000UL | 0x4b4d5305UL)
#define KMS_RV_MALFORMED (0x80000000UL | 0x4b4d5306UL) /* a blob that cannot be one, refused before any key is touched */
#define KMS_RV_TOO_LONG (0x80000000UL | 0x4b4d5307UL)  /* a plaintext beyond the limit of the format */
#define KMS_RV_CLOSED (0x80000000UL | 0x4b4d5308UL)    /* the Token was closed while a call was on its way */

typedef struct {
    CK_FUNCTION_LIST *f;
    CK_FUNCTION_LIST_3_0 *messages; /* NULL where the token does not take AES-GCM as messages */
    CK_OBJECT_HANDLE message_key;   /* the key that messages on the session are set up with; CK_INVALID_HANDLE between runs */
    CK_SLOT_ID slot;
    CK_SESSION_HANDLE session; /* CK_INVALID_HANDLE: none yet, opened when needed */
    long *open_sessions;       /* the token's count, kept with atomic operations */
} hot_lane;

/* One message. `in` is never NULL. Encrypting writes in_len + 16 bytes to `out`; decrypting takes ciphertext and tag in `in` and needs
 * room for in_len bytes in `out`, tag included, because SoftHSM asks for that. */
typedef struct {
    const unsigned char *in;
    unsigned char *out;
    unsigned char *nonce; /* the whole nonce of the blob; its last 12 bytes are the IV */
    CK_ULONG in_len, out_len;
    CK_OBJECT_HANDLE key;
    CK_RV rv; /* an item that comes with anything but CKR_OK has failed already and is left alone */
    int step;
    size_t index;    /* its place in the caller's batch */
    void *plaintext; /* the object that `out` lies in, when decrypting; for the caller only */
} hot_item;

CK_RV hot_session(hot_lane *lane, CK_FLAGS more_flags);
void hot_drop_session(hot_lane *lane);

/* Notes in the item how it failed and costs the lane its session; returns rv. */
CK_RV hot_failed(hot_lane *lane, hot_item *item, CK_RV rv, int step);

/* True when `rv` says that the session had died, which says nothing about the message. */
int hot_session_died(CK_RV rv);

/* Both run every item and return how many failed; each item says how it fared. `nonce_size` is 12 or 24. */
size_t hot_seal(hot_lane *lane, hot_item *items, size_t n, size_t nonce_size, const unsigned char *aad, CK_ULONG aad_len);
size_t hot_open(hot_lane *lane, hot_item *items, size_t n, size_t nonce_size, const unsigned char *aad, CK_ULONG aad_len);

/* True when `rv` says that a key object has gone. */
int hot_key_gone(CK_RV rv);

/* True when the `rv` of C_Decrypt or C_DecryptMessage says that the tag does not match. Elsewhere the same codes mean other things. */
int hot_tag_refused(CK_RV rv);

/* Kx from the two XAES blocks: a session object that encrypts and decrypts and cannot be read. */
CK_RV hot_derive(hot_lane *lane, CK_OBJECT_HANDLE master, const unsigned char blocks[32], int private_key, CK_OBJECT_HANDLE *kx);

/* AES(K, 0^128), through a readable session object that is destroyed before the function returns. *step says what failed. */
CK_RV hot_learn_l(hot_lane *lane, CK_OBJECT_HANDLE master, unsigned char l[16], int *step);

CK_RV hot_destroy(hot_lane *lane, CK_OBJECT_HANDLE object);

#endif
