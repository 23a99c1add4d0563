#define _GNU_SOURCE
#include "hot.h"

#include <string.h>

CK_RV hot_session(hot_lane *lane, CK_FLAGS more_flags)
{
    CK_RV rv;

    if (lane->session != CK_INVALID_HANDLE)
        return CKR_OK;
    rv = lane->f->C_OpenSession(lane->slot, CKF_SERIAL_SESSION | more_flags, NULL, NULL, &lane->session);
    if (rv != CKR_OK)
        lane->session = CK_INVALID_HANDLE;
    else
        __atomic_add_fetch(lane->open_sessions, 1, __ATOMIC_RELAXED);
    return rv;
}

void hot_drop_session(hot_lane *lane)
{
    if (lane->session == CK_INVALID_HANDLE)
        return;
    /* Nothing can be done about a close that fails; the handle is not used again either way. */
    (void)lane->f->C_CloseSession(lane->session);
    lane->session = lane->message_key = CK_INVALID_HANDLE;
    __atomic_sub_fetch(lane->open_sessions, 1, __ATOMIC_RELAXED);
}

CK_RV hot_failed(hot_lane *lane, hot_item *item, CK_RV rv, int step)
{
    hot_drop_session(lane);
    item->rv = rv;
    item->step = step;
    return rv;
}

int hot_session_died(CK_RV rv)
{
    return rv == CKR_SESSION_HANDLE_INVALID || rv == CKR_SESSION_CLOSED;
}

/* What all messages of a run share. */
typedef struct {
    const unsigned char *aad;
    CK_ULONG aad_len;
    size_t iv_at; /* the place of the IV in a nonce */
} frame;

typedef CK_RV (*one_fn)(hot_lane *, hot_item *, const frame *);

static CK_RV seal_one(hot_lane *lane, hot_item *item, const frame *all)
{
    CK_GCM_PARAMS params = {item->nonce + all->iv_at, GCM_IV, 8 * GCM_IV, (CK_BYTE *)all->aad, all->aad_len, 8 * GCM_TAG};
    CK_MECHANISM gcm = {CKM_AES_GCM, &params, sizeof params};
    CK_RV rv = hot_session(lane, 0);

    if (rv != CKR_OK)
        return hot_failed(lane, item, rv, STEP_OPEN);
    rv = lane->f->C_EncryptInit(lane->session, &gcm, item->key);
    if (rv != CKR_OK)
        return hot_failed(lane, item, rv, STEP_ENCRYPT_INIT);
    item->out_len = item->in_len + GCM_TAG;
    rv = lane->f->C_Encrypt(lane->session, (CK_BYTE *)item->in, item->in_len, item->out, &item->out_len);
    if (rv == CKR_OK && item->out_len != item->in_len + GCM_TAG)
        rv = KMS_RV_LENGTH;
    if (rv != CKR_OK)
        return hot_failed(lane, item, rv, STEP_ENCRYPT);
    item->rv = CKR_OK;
    return CKR_OK;
}

static CK_RV open_one(hot_lane *lane, hot_item *item, const frame *all)
{
    CK_GCM_PARAMS params = {item->nonce + all->iv_at, GCM_IV, 8 * GCM_IV, (CK_BYTE *)all->aad, all->aad_len, 8 * GCM_TAG};
    CK_MECHANISM gcm = {CKM_AES_GCM, &params, sizeof params};
    CK_RV rv = hot_session(lane, 0);

    if (rv != CKR_OK)
        return hot_failed(lane, item, rv, STEP_OPEN);
    rv = lane->f->C_DecryptInit(lane->session, &gcm, item->key);
    if (rv != CKR_OK)
        return hot_failed(lane, item, rv, STEP_DECRYPT_INIT);
    item->out_len = item->in_len;
    rv = lane->f->C_Decrypt(lane->session, (CK_BYTE *)item->in, item->in_len, item->out, &item->out_len);
    if (rv == CKR_OK && item->out_len != item->in_len - GCM_TAG)
        rv = KMS_RV_LENGTH;
    if (rv != CKR_OK)
        return hot_failed(lane, item, rv, STEP_DECRYPT);
    item->rv = CKR_OK;
    return CKR_OK;
}

typedef CK_RV (*init_fn)(CK_SESSION_HANDLE, CK_MECHANISM *, CK_OBJECT_HANDLE);
typedef CK_RV (*final_fn)(CK_SESSION_HANDLE);

/* The messages that were set up are done with. A failure says nothing about them; it costs the session all the same. */
static void end_messages(hot_lane *lane, final_fn final)
{
    if (lane->message_key == CK_INVALID_HANDLE)
        return;
    lane->message_key = CK_INVALID_HANDLE;
    if (final(lane->session) != CKR_OK)
        hot_drop_session(lane);
}

/* A session on which messages are set up with the key of the item. */
static CK_RV set_up(hot_lane *lane, hot_item *item, init_fn init, final_fn final, int step)
{
    CK_MECHANISM gcm = {CKM_AES_GCM, NULL, 0}; /* the parameters come with each message */
    CK_RV rv;

    if (lane->message_key == item->key && item->key != CK_INVALID_HANDLE)
        return CKR_OK;
    end_messages(lane, final);
    rv = hot_session(lane, 0);
    if (rv != CKR_OK)
        return hot_failed(lane, item, rv, STEP_OPEN);
    rv = init(lane->session, &gcm, item->key);
    if (rv != CKR_OK)
        return hot_failed(lane, item, rv, step);
    lane->message_key = item->key;
    return CKR_OK;
}

static CK_RV seal_message(hot_lane *lane, hot_item *item, const frame *all)
{
    CK_FUNCTION_LIST_3_0 *m = lane->messages;
    CK_GCM_MESSAGE_PARAMS params = {item->nonce + all->iv_at, GCM_IV, 0, CKG_NO_GENERATE, item->out + item->in_len, 8 * GCM_TAG};
    CK_ULONG written = item->in_len;
    CK_RV rv = set_up(lane, item, m->C_MessageEncryptInit, m->C_MessageEncryptFinal, STEP_MESSAGE_ENCRYPT_INIT);

    if (rv != CKR_OK)
        return rv;
    rv = m->C_EncryptMessage(lane->session, &params, sizeof params, (CK_BYTE *)all->aad, all->aad_len, (CK_BYTE *)item->in, item->in_len,
                             item->out, &written);
    if (rv == CKR_OK && written != item->in_len)
        rv = KMS_RV_LENGTH;
    if (rv != CKR_OK)
        return hot_failed(lane, item, rv, STEP_ENCRYPT_MESSAGE);
    item->out_len = item->in_len + GCM_TAG;
    item->rv = CKR_OK;
    return CKR_OK;
}

static CK_RV open_message(hot_lane *lane, hot_item *item, const frame *all)
{
    CK_FUNCTION_LIST_3_0 *m = lane->messages;
    CK_ULONG size = item->in_len - GCM_TAG;
    CK_GCM_MESSAGE_PARAMS params = {item->nonce + all->iv_at, GCM_IV, 0, CKG_NO_GENERATE, (CK_BYTE *)item->in + size, 8 * GCM_TAG};
    CK_RV rv = set_up(lane, item, m->C_MessageDecryptInit, m->C_MessageDecryptFinal, STEP_MESSAGE_DECRYPT_INIT);

    if (rv != CKR_OK)
        return rv;
    item->out_len = item->in_len;
    rv = m->C_DecryptMessage(lane->session, &params, sizeof params, (CK_BYTE *)all->aad, all->aad_len, (CK_BYTE *)item->in, size, item->out,
                             &item->out_len);
    if (rv == CKR_OK && item->out_len != size)
        rv = KMS_RV_LENGTH;
    if (rv != CKR_OK)
        return hot_failed(lane, item, rv, STEP_DECRYPT_MESSAGE);
    item->rv = CKR_OK;
    return CKR_OK;
}

static inline size_t run(one_fn one, hot_lane *lane, hot_item *items, size_t n, size_t nonce_size, const unsigned char *aad,
                         CK_ULONG aad_len)
{
    frame all = {aad, aad_len, nonce_size - GCM_IV};
    size_t i, bad = 0;
    CK_RV rv;

    for (i = 0; i < n; i++) {
        if (items[i].rv != CKR_OK) {
            bad++;
            continue;
        }
        rv = one(lane, &items[i], &all);
        /* A session that died while it lay idle says nothing about the message: once more, on a fresh one. The same message under the
         * same nonce gives the same bytes, so nothing is revealed by the repetition. */
        if (hot_session_died(rv))
            rv = one(lane, &items[i], &all);
        bad += rv != CKR_OK;
    }
    return bad;
}

size_t hot_seal(hot_lane *lane, hot_item *items, size_t n, size_t nonce_size, const unsigned char *aad, CK_ULONG aad_len)
{
    size_t bad;

    if (!lane->messages)
        return run(seal_one, lane, items, n, nonce_size, aad, aad_len);
    bad = run(seal_message, lane, items, n, nonce_size, aad, aad_len);
    end_messages(lane, lane->messages->C_MessageEncryptFinal);
    return bad;
}

size_t hot_open(hot_lane *lane, hot_item *items, size_t n, size_t nonce_size, const unsigned char *aad, CK_ULONG aad_len)
{
    size_t bad;

    if (!lane->messages)
        return run(open_one, lane, items, n, nonce_size, aad, aad_len);
    bad = run(open_message, lane, items, n, nonce_size, aad, aad_len);
    end_messages(lane, lane->messages->C_MessageDecryptFinal);
    return bad;
}

int hot_key_gone(CK_RV rv)
{
    return rv == CKR_KEY_HANDLE_INVALID || rv == CKR_OBJECT_HANDLE_INVALID;
}

int hot_tag_refused(CK_RV rv)
{
    /* SoftHSM 2.6.1 says GENERAL_ERROR, 2.7.0 and NSS ENCRYPTED_DATA_INVALID (HSM.md section 6). */
    return rv == CKR_GENERAL_ERROR || rv == CKR_ENCRYPTED_DATA_INVALID || rv == CKR_ENCRYPTED_DATA_LEN_RANGE ||
           rv == CKR_AEAD_DECRYPT_FAILED;
}

static CK_RV derive(hot_lane *lane, CK_OBJECT_HANDLE master, const unsigned char *data, CK_ULONG size, CK_ATTRIBUTE *template,
                    CK_ULONG count, CK_OBJECT_HANDLE *object)
{
    CK_KEY_DERIVATION_STRING_DATA string = {(CK_BYTE *)data, size};
    CK_MECHANISM mechanism = {CKM_AES_ECB_ENCRYPT_DATA, &string, sizeof string};
    CK_RV rv = hot_session(lane, 0);

    if (rv == CKR_OK)
        rv = lane->f->C_DeriveKey(lane->session, &mechanism, master, template, count, object);
    return rv;
}

CK_RV hot_derive(hot_lane *lane, CK_OBJECT_HANDLE master, const unsigned char blocks[32], int private_key, CK_OBJECT_HANDLE *kx)
{
    CK_BBOOL yes = CK_TRUE, no = CK_FALSE, private_value = private_key ? CK_TRUE : CK_FALSE;
    CK_ULONG class = CKO_SECRET_KEY, type = CKK_AES, length = 32;
    /* Every boolean is set: SoftHSM's defaults allow wrapping and signing (RELIABILITY 1.2, fact 1). */
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof class},    {CKA_KEY_TYPE, &type, sizeof type},       {CKA_VALUE_LEN, &length, sizeof length},
        {CKA_TOKEN, &no, sizeof no},          {CKA_PRIVATE, &private_value, sizeof no}, {CKA_SENSITIVE, &yes, sizeof yes},
        {CKA_EXTRACTABLE, &no, sizeof no},    {CKA_ENCRYPT, &yes, sizeof yes},          {CKA_DECRYPT, &yes, sizeof yes},
        {CKA_WRAP, &no, sizeof no},           {CKA_UNWRAP, &no, sizeof no},             {CKA_SIGN, &no, sizeof no},
        {CKA_VERIFY, &no, sizeof no},         {CKA_DERIVE, &no, sizeof no},
    };

    return derive(lane, master, blocks, 32, template, sizeof template / sizeof *template, kx);
}

CK_RV hot_learn_l(hot_lane *lane, CK_OBJECT_HANDLE master, unsigned char l[16], int *step)
{
    static const unsigned char zero[16] = {0};
    CK_BBOOL yes = CK_TRUE, no = CK_FALSE;
    CK_ULONG class = CKO_SECRET_KEY, type = CKK_GENERIC_SECRET, length = 16;
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof class}, {CKA_KEY_TYPE, &type, sizeof type},  {CKA_VALUE_LEN, &length, sizeof length},
        {CKA_TOKEN, &no, sizeof no},       {CKA_PRIVATE, &no, sizeof no},       {CKA_SENSITIVE, &no, sizeof no},
        {CKA_EXTRACTABLE, &yes, sizeof yes}, {CKA_ENCRYPT, &no, sizeof no},     {CKA_DECRYPT, &no, sizeof no},
        {CKA_WRAP, &no, sizeof no},        {CKA_UNWRAP, &no, sizeof no},        {CKA_SIGN, &no, sizeof no},
        {CKA_VERIFY, &no, sizeof no},      {CKA_DERIVE, &no, sizeof no},
    };
    CK_ATTRIBUTE value = {CKA_VALUE, l, 16};
    CK_OBJECT_HANDLE object = CK_INVALID_HANDLE;
    CK_RV rv, destroyed;

    *step = STEP_DERIVE;
    rv = derive(lane, master, zero, sizeof zero, template, sizeof template / sizeof *template, &object);
    if (rv != CKR_OK)
        return rv;
    *step = STEP_READ;
    rv = lane->f->C_GetAttributeValue(lane->session, object, &value, 1);
    if (rv == CKR_OK && value.ulValueLen != 16)
        rv = KMS_RV_LENGTH;
    destroyed = lane->f->C_DestroyObject(lane->session, object);
    if (rv == CKR_OK && destroyed != CKR_OK) {
        *step = STEP_DESTROY;
        rv = destroyed;
    }
    if (rv != CKR_OK)
        explicit_bzero(l, 16);
    return rv;
}

CK_RV hot_destroy(hot_lane *lane, CK_OBJECT_HANDLE object)
{
    CK_RV rv = hot_session(lane, 0);

    if (rv == CKR_OK)
        rv = lane->f->C_DestroyObject(lane->session, object);
    if (rv != CKR_OK)
        hot_drop_session(lane);
    return rv;
}
