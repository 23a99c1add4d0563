/* Finding a PKCS#11 module and starting it the one way that is safe with threads. */
#ifndef KMS_P11_LOAD_H
#define KMS_P11_LOAD_H

#include <stddef.h>

#include "ck.h"

/* dlopen and C_GetFunctionList; initialises nothing. *v3 becomes the list of PKCS#11 3.0 where the module offers it, or NULL. On failure
 * returns NULL and writes the reason. The module stays mapped for good: unmapping one whose threads or exit handlers may still run is
 * undefined. */
CK_FUNCTION_LIST *p11_load(const char *path, CK_FUNCTION_LIST_3_0 **v3, char *reason, size_t reason_size);

/* C_Initialize with CKF_OS_LOCKING_OK: with NULL, SoftHSM runs without mutexes (HSM.md section 3). `parameters` is NULL, or the string that
 * NSS softoken wants. */
CK_RV p11_initialize(CK_FUNCTION_LIST *f, const char *parameters);

#endif
