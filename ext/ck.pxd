# PKCS#11 as the core declares it in ck.h: types, constants and the function list.
# Every function pointer is noexcept nogil: a module knows nothing of Python and may stall for seconds.

cdef extern from "ck.h" nogil:
    ctypedef unsigned char CK_BYTE
    ctypedef unsigned char CK_BBOOL
    ctypedef unsigned long CK_ULONG
    ctypedef CK_ULONG CK_RV
    ctypedef CK_ULONG CK_FLAGS
    ctypedef CK_ULONG CK_SLOT_ID
    ctypedef CK_ULONG CK_SESSION_HANDLE
    ctypedef CK_ULONG CK_OBJECT_HANDLE
    ctypedef CK_ULONG CK_MECHANISM_TYPE
    ctypedef CK_ULONG CK_ATTRIBUTE_TYPE
    ctypedef CK_ULONG CK_USER_TYPE

    CK_BBOOL CK_TRUE
    CK_ULONG CK_INVALID_HANDLE
    CK_ULONG CK_UNAVAILABLE_INFORMATION
    CK_RV CKR_OK
    CK_RV CKR_OBJECT_HANDLE_INVALID
    CK_RV CKR_GENERAL_ERROR
    CK_RV CKR_FUNCTION_FAILED
    CK_RV CKR_ATTRIBUTE_SENSITIVE
    CK_RV CKR_ATTRIBUTE_TYPE_INVALID
    CK_RV CKR_BUFFER_TOO_SMALL
    CK_RV CKR_USER_ALREADY_LOGGED_IN
    CK_RV CKR_CRYPTOKI_NOT_INITIALIZED
    CK_RV CKR_SESSION_HANDLE_INVALID
    CK_RV CKR_SESSION_CLOSED
    CK_FLAGS CKF_RW_SESSION
    CK_USER_TYPE CKU_SO
    CK_USER_TYPE CKU_USER
    CK_MECHANISM_TYPE CKM_RSA_PKCS_PSS
    CK_MECHANISM_TYPE CKM_AES_GCM
    CK_FLAGS CKF_MESSAGE_ENCRYPT
    CK_FLAGS CKF_MESSAGE_DECRYPT
    CK_ATTRIBUTE_TYPE CKA_CLASS
    CK_ATTRIBUTE_TYPE CKA_TOKEN
    CK_ATTRIBUTE_TYPE CKA_LABEL
    CK_ATTRIBUTE_TYPE CKA_ID

    ctypedef struct CK_VERSION:
        CK_BYTE major
        CK_BYTE minor

    ctypedef struct CK_INFO:
        CK_VERSION cryptokiVersion
        CK_BYTE manufacturerID[32]
        CK_BYTE libraryDescription[32]
        CK_VERSION libraryVersion

    ctypedef struct CK_TOKEN_INFO:
        CK_BYTE label[32]
        CK_BYTE manufacturerID[32]
        CK_BYTE model[16]
        CK_BYTE serialNumber[16]
        CK_FLAGS flags
        CK_VERSION hardwareVersion
        CK_VERSION firmwareVersion

    ctypedef struct CK_MECHANISM_INFO:
        CK_ULONG ulMinKeySize
        CK_ULONG ulMaxKeySize
        CK_FLAGS flags

    ctypedef struct CK_ATTRIBUTE:
        CK_ATTRIBUTE_TYPE type
        void *pValue
        CK_ULONG ulValueLen

    ctypedef struct CK_FUNCTION_LIST:
        CK_RV (*C_Finalize)(void *) noexcept nogil
        CK_RV (*C_GetInfo)(CK_INFO *) noexcept nogil
        CK_RV (*C_GetSlotList)(CK_BBOOL, CK_SLOT_ID *, CK_ULONG *) noexcept nogil
        CK_RV (*C_GetTokenInfo)(CK_SLOT_ID, CK_TOKEN_INFO *) noexcept nogil
        CK_RV (*C_GetMechanismList)(CK_SLOT_ID, CK_MECHANISM_TYPE *, CK_ULONG *) noexcept nogil
        CK_RV (*C_GetMechanismInfo)(CK_SLOT_ID, CK_MECHANISM_TYPE, CK_MECHANISM_INFO *) noexcept nogil
        CK_RV (*C_InitToken)(CK_SLOT_ID, CK_BYTE *, CK_ULONG, CK_BYTE *) noexcept nogil
        CK_RV (*C_InitPIN)(CK_SESSION_HANDLE, CK_BYTE *, CK_ULONG) noexcept nogil
        CK_RV (*C_Login)(CK_SESSION_HANDLE, CK_USER_TYPE, CK_BYTE *, CK_ULONG) noexcept nogil
        CK_RV (*C_Logout)(CK_SESSION_HANDLE) noexcept nogil
        CK_RV (*C_GetAttributeValue)(CK_SESSION_HANDLE, CK_OBJECT_HANDLE, CK_ATTRIBUTE *, CK_ULONG) noexcept nogil
        CK_RV (*C_FindObjectsInit)(CK_SESSION_HANDLE, CK_ATTRIBUTE *, CK_ULONG) noexcept nogil
        CK_RV (*C_FindObjects)(CK_SESSION_HANDLE, CK_OBJECT_HANDLE *, CK_ULONG, CK_ULONG *) noexcept nogil
        CK_RV (*C_FindObjectsFinal)(CK_SESSION_HANDLE) noexcept nogil
        CK_RV (*C_GenerateRandom)(CK_SESSION_HANDLE, CK_BYTE *, CK_ULONG) noexcept nogil

    ctypedef struct CK_FUNCTION_LIST_3_0:
        CK_FUNCTION_LIST v2
