/* A PKCS#11 module for tests: the one that SHIM_MODULE names when this is compiled, with faults. Each function that it overrides first
 * looks at its plan: answer `rv` for the next `times` calls, after letting `skip` calls through; or wait until it is told to go on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#include "ck.h"

enum {
    OPEN_SESSION, ENCRYPT_INIT, ENCRYPT, DECRYPT_INIT, DECRYPT, DERIVE_KEY, DESTROY_OBJECT, CLOSE_SESSION, SIGN_INIT, SIGN,
    MESSAGE_ENCRYPT_INIT, ENCRYPT_MESSAGE, MESSAGE_ENCRYPT_FINAL, MESSAGE_DECRYPT_INIT, DECRYPT_MESSAGE, MESSAGE_DECRYPT_FINAL, FUNCTIONS
};

static CK_FUNCTION_LIST *real, list;
static CK_FUNCTION_LIST_3_0 *real_v3, list_v3;
static CK_INTERFACE interface = {"PKCS 11", &list_v3, 0};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct {
    CK_RV rv;
    int skip, times, after; /* after: do the call all the same, then answer rv */
    int gate, waiting;      /* gate: calls wait here */
    long calls;
} plans[FUNCTIONS];

__attribute__((visibility("default"))) void shim_fail(int function, CK_RV rv, int skip, int times, int after)
{
    pthread_mutex_lock(&lock);
    plans[function].rv = rv;
    plans[function].skip = skip;
    plans[function].times = times;
    plans[function].after = after;
    pthread_mutex_unlock(&lock);
}

__attribute__((visibility("default"))) void shim_gate(int function, int closed)
{
    pthread_mutex_lock(&lock);
    plans[function].gate = closed;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* Waits until n calls stand at the gate of the function. */
__attribute__((visibility("default"))) void shim_await(int function, int n)
{
    pthread_mutex_lock(&lock);
    while (plans[function].waiting < n)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

__attribute__((visibility("default"))) long shim_calls(int function)
{
    long n;

    pthread_mutex_lock(&lock);
    n = plans[function].calls;
    pthread_mutex_unlock(&lock);
    return n;
}

__attribute__((visibility("default"))) void shim_reset(void)
{
    pthread_mutex_lock(&lock);
    memset(plans, 0, sizeof plans);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static CK_RV planned(int function, int *after)
{
    CK_RV rv = CKR_OK;

    pthread_mutex_lock(&lock);
    plans[function].calls++;
    plans[function].waiting++;
    pthread_cond_broadcast(&changed);
    while (plans[function].gate)
        pthread_cond_wait(&changed, &lock);
    plans[function].waiting--;
    *after = plans[function].after;
    if (plans[function].skip > 0)
        plans[function].skip--;
    else if (plans[function].times > 0) {
        plans[function].times--;
        rv = plans[function].rv;
    }
    pthread_mutex_unlock(&lock);
    return rv;
}

#define OVERRIDE(name, which, parameters, arguments) OVERRIDE_OF(real, name, which, parameters, arguments)
#define OVERRIDE_OF(real, name, which, parameters, arguments) \
    static CK_RV name parameters \
    { \
        int after; \
        CK_RV rv = planned(which, &after), done; \
        if (rv != CKR_OK && !after) \
            return rv; \
        done = real->name arguments; \
        return rv != CKR_OK ? rv : done; \
    }

OVERRIDE(C_OpenSession, OPEN_SESSION, (CK_SLOT_ID s, CK_FLAGS f, void *a, void *n, CK_SESSION_HANDLE *h), (s, f, a, n, h))
OVERRIDE(C_CloseSession, CLOSE_SESSION, (CK_SESSION_HANDLE h), (h))
OVERRIDE(C_EncryptInit, ENCRYPT_INIT, (CK_SESSION_HANDLE h, CK_MECHANISM *m, CK_OBJECT_HANDLE k), (h, m, k))
OVERRIDE(C_Encrypt, ENCRYPT, (CK_SESSION_HANDLE h, CK_BYTE *d, CK_ULONG n, CK_BYTE *o, CK_ULONG *l), (h, d, n, o, l))
OVERRIDE(C_DecryptInit, DECRYPT_INIT, (CK_SESSION_HANDLE h, CK_MECHANISM *m, CK_OBJECT_HANDLE k), (h, m, k))
OVERRIDE(C_Decrypt, DECRYPT, (CK_SESSION_HANDLE h, CK_BYTE *d, CK_ULONG n, CK_BYTE *o, CK_ULONG *l), (h, d, n, o, l))
OVERRIDE(C_DeriveKey, DERIVE_KEY,
         (CK_SESSION_HANDLE h, CK_MECHANISM *m, CK_OBJECT_HANDLE k, CK_ATTRIBUTE *t, CK_ULONG n, CK_OBJECT_HANDLE *o), (h, m, k, t, n, o))
OVERRIDE(C_DestroyObject, DESTROY_OBJECT, (CK_SESSION_HANDLE h, CK_OBJECT_HANDLE o), (h, o))
OVERRIDE(C_SignInit, SIGN_INIT, (CK_SESSION_HANDLE h, CK_MECHANISM *m, CK_OBJECT_HANDLE k), (h, m, k))
OVERRIDE(C_Sign, SIGN, (CK_SESSION_HANDLE h, CK_BYTE *d, CK_ULONG n, CK_BYTE *o, CK_ULONG *l), (h, d, n, o, l))
OVERRIDE_OF(real_v3, C_MessageEncryptInit, MESSAGE_ENCRYPT_INIT, (CK_SESSION_HANDLE h, CK_MECHANISM *m, CK_OBJECT_HANDLE k), (h, m, k))
OVERRIDE_OF(real_v3, C_MessageDecryptInit, MESSAGE_DECRYPT_INIT, (CK_SESSION_HANDLE h, CK_MECHANISM *m, CK_OBJECT_HANDLE k), (h, m, k))
OVERRIDE_OF(real_v3, C_MessageEncryptFinal, MESSAGE_ENCRYPT_FINAL, (CK_SESSION_HANDLE h), (h))
OVERRIDE_OF(real_v3, C_MessageDecryptFinal, MESSAGE_DECRYPT_FINAL, (CK_SESSION_HANDLE h), (h))
OVERRIDE_OF(real_v3, C_EncryptMessage, ENCRYPT_MESSAGE,
            (CK_SESSION_HANDLE h, void *p, CK_ULONG pn, CK_BYTE *a, CK_ULONG an, CK_BYTE *d, CK_ULONG n, CK_BYTE *o, CK_ULONG *l),
            (h, p, pn, a, an, d, n, o, l))
OVERRIDE_OF(real_v3, C_DecryptMessage, DECRYPT_MESSAGE,
            (CK_SESSION_HANDLE h, void *p, CK_ULONG pn, CK_BYTE *a, CK_ULONG an, CK_BYTE *d, CK_ULONG n, CK_BYTE *o, CK_ULONG *l),
            (h, p, pn, a, an, d, n, o, l))

/* The lists of the real module, with our functions in them. */
static int load(void)
{
    CK_RV (*get)(CK_FUNCTION_LIST **);
    CK_RV (*get_interface)(CK_BYTE *, CK_VERSION *, CK_INTERFACE **, CK_FLAGS);
    CK_INTERFACE *v3 = NULL;
    CK_VERSION three = {3, 0};
    void *module;

    if (real)
        return 0;
    module = dlopen(SHIM_MODULE, RTLD_NOW | RTLD_LOCAL);
    if (!module)
        return -1;
    *(void **)&get = dlsym(module, "C_GetFunctionList");
    if (!get || get(&real) != CKR_OK)
        return -1;
    list = *real;
    list.C_OpenSession = C_OpenSession;
    list.C_CloseSession = C_CloseSession;
    list.C_EncryptInit = C_EncryptInit;
    list.C_Encrypt = C_Encrypt;
    list.C_DecryptInit = C_DecryptInit;
    list.C_Decrypt = C_Decrypt;
    list.C_DeriveKey = C_DeriveKey;
    list.C_DestroyObject = C_DestroyObject;
    list.C_SignInit = C_SignInit;
    list.C_Sign = C_Sign;
    *(void **)&get_interface = dlsym(module, "C_GetInterface");
    if (get_interface && get_interface((CK_BYTE *)"PKCS 11", &three, &v3, 0) == CKR_OK) {
        real_v3 = v3->pFunctionList;
        list_v3 = *real_v3;
        list_v3.C_MessageEncryptInit = C_MessageEncryptInit;
        list_v3.C_EncryptMessage = C_EncryptMessage;
        list_v3.C_MessageEncryptFinal = C_MessageEncryptFinal;
        list_v3.C_MessageDecryptInit = C_MessageDecryptInit;
        list_v3.C_DecryptMessage = C_DecryptMessage;
        list_v3.C_MessageDecryptFinal = C_MessageDecryptFinal;
    }
    return 0;
}

__attribute__((visibility("default"))) CK_RV C_GetInterface(CK_BYTE *name, CK_VERSION *version, CK_INTERFACE **answer, CK_FLAGS flags)
{
    if (load() || !real_v3)
        return CKR_FUNCTION_FAILED;
    *answer = &interface;
    return CKR_OK;
}

__attribute__((visibility("default"))) CK_RV C_GetFunctionList(CK_FUNCTION_LIST **answer)
{
    if (load())
        return CKR_GENERAL_ERROR;
    *answer = &list;
    return CKR_OK;
}
