#include "p11_load.h"

#include <dlfcn.h>
#include <stdio.h>

static CK_FUNCTION_LIST_3_0 *list_of_v3(void *library)
{
    CK_RV (*get)(CK_BYTE *, CK_VERSION *, CK_INTERFACE **, CK_FLAGS);
    CK_VERSION wanted = {3, 0}, *got;
    CK_INTERFACE *interface = NULL;

    *(void **)&get = dlsym(library, "C_GetInterface");
    if (!get || get((CK_BYTE *)"PKCS 11", &wanted, &interface, 0) != CKR_OK || !interface || !interface->pFunctionList)
        return NULL;
    got = interface->pFunctionList; /* every list begins with its version */
    return got->major == 3 ? interface->pFunctionList : NULL;
}

CK_FUNCTION_LIST *p11_load(const char *path, CK_FUNCTION_LIST_3_0 **v3, char *reason, size_t reason_size)
{
    CK_FUNCTION_LIST *list = NULL;
    CK_RV (*get)(CK_FUNCTION_LIST **);
    CK_RV rv;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

    if (!library) {
        snprintf(reason, reason_size, "%s", dlerror());
        return NULL;
    }
    /* The detour is how POSIX has a function pointer taken from dlsym. */
    *(void **)&get = dlsym(library, "C_GetFunctionList");
    if (!get) {
        snprintf(reason, reason_size, "it has no C_GetFunctionList");
        dlclose(library);
        return NULL;
    }
    rv = get(&list);
    if (rv != CKR_OK || !list) {
        snprintf(reason, reason_size, "C_GetFunctionList answered 0x%lx", rv);
        return NULL;
    }
    if (list->version.major < 2) {
        snprintf(reason, reason_size, "it speaks Cryptoki %d.%d, not 2.x", list->version.major, list->version.minor);
        return NULL;
    }
    *v3 = list_of_v3(library);
    return list;
}

CK_RV p11_initialize(CK_FUNCTION_LIST *f, const char *parameters)
{
    /* NSS has its LibraryParameters where the standard has pReserved, and its own pReserved behind it. */
    struct {
        CK_C_INITIALIZE_ARGS standard;
        void *nss_reserved;
    } args = {0};

    args.standard.flags = CKF_OS_LOCKING_OK;
    args.standard.pReserved = (void *)parameters;
    return f->C_Initialize(&args);
}
