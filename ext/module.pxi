# Module: the shared library that speaks PKCS#11, and what can be asked of it before a login.


@cython.final
@cython.no_gc
cdef class _Library:
    """What all Module objects of one loaded library share in this process."""

    cdef CK_FUNCTION_LIST *f
    cdef CK_FUNCTION_LIST_3_0 *v3  # NULL where the module does not speak PKCS#11 3.0
    cdef int made_in
    cdef unsigned long generation  # grows at finalize: whatever remembers another number must not call the library
    cdef long calls                # calls of our Tokens that are in the library now; kept under the GIL


cdef dict _libraries = {}


cdef int _wait_for_calls(long *calls, str what) except -1:
    """Wait, at most 30 s, until no other thread is inside a call. Raises KmsError ServiceUnavailableTemporary."""
    cdef int rounds = 0
    while calls[0]:
        if rounds == 30000:
            raise KmsError("ServiceUnavailableTemporary", f"{what} still has calls in flight after 30 seconds")
        rounds += 1
        with nogil:
            usleep(1000)
    return 0


cdef str _text(const unsigned char *field, Py_ssize_t size):
    """A blank-padded field of fixed size, as text."""
    return PyBytes_FromStringAndSize(<char *>field, size).decode("utf-8", "replace").rstrip(" \0")


@cython.final
@cython.no_gc
cdef class Module:
    """A PKCS#11 module, loaded by dlopen and never unloaded. Making one does not initialise it.

    Raises SetupError when the file is no PKCS#11 module.
    """

    cdef _Library library
    cdef int made_in
    cdef readonly str path

    def __init__(self, str path not None):
        cdef char reason[256]
        cdef bytes name = os.fsencode(path)
        cdef CK_FUNCTION_LIST_3_0 *v3 = NULL
        cdef CK_FUNCTION_LIST *f = p11_load(name, &v3, reason, sizeof(reason))
        if f == NULL:
            raise SetupError(f"{path} cannot be used as a PKCS#11 module: {(<bytes>reason).decode('utf-8', 'replace')}")
        cdef _Library library = _libraries.get(<size_t>f)
        if library is None or library.made_in != kms_forks:
            library = _Library.__new__(_Library)
            library.f, library.v3 = f, v3
            library.made_in = kms_forks
            _libraries[<size_t>f] = library
        self.library = library
        self.made_in = kms_forks
        self.path = path

    def __reduce__(self):
        raise TypeError("a Module cannot be pickled or copied")

    cdef CK_FUNCTION_LIST *functions(self) except NULL:
        if self.library is None:
            raise ValueError("the Module was not made by Module(path)")
        _check_fork(self.made_in, "the Module")
        return self.library.f

    def initialize(self, str library_parameters not None=""):
        """C_Initialize with CKF_OS_LOCKING_OK, so that threads are safe.

        `library_parameters` is the string that NSS softoken takes ("configdir='sql:...' ..."); other modules want none. Raises ValueError
        when it holds a NUL, TokenError also when someone initialised the module already.
        """
        cdef CK_FUNCTION_LIST *f = self.functions()
        cdef bytes text = os.fsencode(library_parameters)
        cdef const char *parameters = NULL
        cdef CK_RV rv
        if b"\0" in text:
            raise ValueError("library_parameters must not hold a NUL")
        if text:
            parameters = text
        with nogil:
            rv = p11_initialize(f, parameters)
        _check_rv(rv, "C_Initialize")

    def finalize(self):
        """C_Finalize, whoever initialised. Every Token and AeadKey of the module is dead afterwards. Not initialised is success.

        Waits for calls in flight first. Raises KmsError ServiceUnavailableTemporary when they last longer than 30 s; the Tokens are dead
        then, but the module is still initialised. Raises TokenError.
        """
        cdef CK_FUNCTION_LIST *f = self.functions()
        cdef CK_RV rv
        self.library.generation += 1
        _wait_for_calls(&self.library.calls, "the module")
        with nogil:
            rv = f.C_Finalize(NULL)
        if rv != CKR_CRYPTOKI_NOT_INITIALIZED:
            _check_rv(rv, "C_Finalize")

    def slots(self, bint token_present=True):
        """The slot ids, of all slots or only of those with a token. Raises TokenError."""
        cdef CK_FUNCTION_LIST *f = self.functions()
        cdef CK_SLOT_ID found[256]
        cdef CK_ULONG count = 256
        cdef CK_RV rv
        with nogil:
            rv = f.C_GetSlotList(token_present, found, &count)
        _check_rv(rv, "C_GetSlotList")
        return [found[i] for i in range(count)]

    def token_info(self, CK_SLOT_ID slot):
        """What C_GetTokenInfo says: label, manufacturer, model and serial without their padding, flags, firmware, hardware.

        Raises TokenError.
        """
        cdef CK_FUNCTION_LIST *f = self.functions()
        cdef CK_TOKEN_INFO info
        cdef CK_RV rv
        memset(&info, 0, sizeof(info))
        with nogil:
            rv = f.C_GetTokenInfo(slot, &info)
        _check_rv(rv, "C_GetTokenInfo")
        return {
            "label": _text(info.label, 32),
            "manufacturer": _text(info.manufacturerID, 32),
            "model": _text(info.model, 16),
            "serial": _text(info.serialNumber, 16),
            "flags": info.flags,
            "firmware": f"{info.firmwareVersion.major}.{info.firmwareVersion.minor}",
            "hardware": f"{info.hardwareVersion.major}.{info.hardwareVersion.minor}",
        }

    def info(self):
        """What C_GetInfo says of the module itself. Raises TokenError."""
        cdef CK_FUNCTION_LIST *f = self.functions()
        cdef CK_INFO info
        cdef CK_RV rv
        memset(&info, 0, sizeof(info))
        with nogil:
            rv = f.C_GetInfo(&info)
        _check_rv(rv, "C_GetInfo")
        return {
            "manufacturer": _text(info.manufacturerID, 32),
            "description": _text(info.libraryDescription, 32),
            "library_version": f"{info.libraryVersion.major}.{info.libraryVersion.minor}",
            "cryptoki_version": f"{info.cryptokiVersion.major}.{info.cryptokiVersion.minor}",
        }

    def mechanisms(self, CK_SLOT_ID slot):
        """mechanism -> (smallest key, largest key, flags), in the mechanism's own unit of key size. Raises TokenError."""
        cdef CK_FUNCTION_LIST *f = self.functions()
        cdef CK_MECHANISM_TYPE found[1024]
        cdef CK_MECHANISM_INFO info
        cdef CK_ULONG count = 1024
        cdef CK_RV rv
        with nogil:
            rv = f.C_GetMechanismList(slot, found, &count)
        _check_rv(rv, "C_GetMechanismList")
        answer = {}
        for i in range(count):
            with nogil:
                rv = f.C_GetMechanismInfo(slot, found[i], &info)
            _check_rv(rv, "C_GetMechanismInfo")
            answer[found[i]] = (info.ulMinKeySize, info.ulMaxKeySize, info.flags)
        return answer

    def init_token(self, CK_SLOT_ID slot, Secret so_pin not None, str label not None):
        """C_InitToken: wipes the token in the slot and gives it a label of at most 32 bytes in UTF-8. Raises ValueError, TokenError."""
        cdef CK_FUNCTION_LIST *f = self.functions()
        cdef unsigned char padded[32]
        cdef bytes name = label.encode()
        cdef CK_RV rv
        if not 1 <= len(name) <= 32:
            raise ValueError("a token label has 1 to 32 bytes in UTF-8")
        memset(padded, c" ", 32)
        memcpy(padded, <const char *>name, len(name))
        so_pin.check()
        so_pin.pin()
        with nogil:
            rv = f.C_InitToken(slot, so_pin.data, so_pin.length, padded)
        so_pin.unpin()
        _check_rv(rv, "C_InitToken")

    def init_user_pin(self, CK_SLOT_ID slot, Secret so_pin not None, Secret pin not None):
        """Log in as security officer, set the user's PIN, log out, on a session of its own. No user may be logged in. Raises TokenError."""
        cdef hot_lane lane
        cdef long sessions = 0
        cdef CK_RV rv
        cdef int step = 0
        lane.f, lane.slot, lane.session, lane.open_sessions = self.functions(), slot, CK_INVALID_HANDLE, &sessions
        so_pin.check()
        pin.check()
        so_pin.pin()
        pin.pin()
        with nogil:
            rv = hot_session(&lane, CKF_RW_SESSION)
            if rv == CKR_OK:
                step = 1
                rv = lane.f.C_Login(lane.session, CKU_SO, so_pin.data, so_pin.length)
            if rv == CKR_OK:
                step = 2
                rv = lane.f.C_InitPIN(lane.session, pin.data, pin.length)
                # Closing the only session would log out too, but python-pkcs11 may hold another one.
                lane.f.C_Logout(lane.session)
            hot_drop_session(&lane)
        so_pin.unpin()
        pin.unpin()
        _check_rv(rv, ("C_OpenSession", "C_Login", "C_InitPIN")[step])

    def open(self, CK_SLOT_ID slot, *, bint private_hot_keys=False):
        """The token in a slot, not yet logged in.

        `private_hot_keys` makes derived keys CKA_PRIVATE: SoftHSM then keeps them masked in memory and is 1.8 times slower (HSM.md 1).
        """
        self.functions()
        cdef CK_FUNCTION_LIST_3_0 *v3 = self.library.v3
        cdef CK_FLAGS both = CKF_MESSAGE_ENCRYPT | CKF_MESSAGE_DECRYPT
        cdef CK_MECHANISM_INFO gcm
        cdef Token token = Token.__new__(Token)
        token.library = self.library
        token.generation = self.library.generation
        token.made_in = kms_forks
        token.slot = slot
        token.private_hot_keys = private_hot_keys
        token.limit = 4096
        if v3 != NULL:
            with nogil:
                # Asked through the list of 2.40, NSS keeps the flags of 3.0 to itself.
                if v3.v2.C_GetMechanismInfo(slot, CKM_AES_GCM, &gcm) != CKR_OK or gcm.flags & both != both:
                    v3 = NULL
            token.messages = v3
        return token

    @property
    def function_list(self):
        """Address of the CK_FUNCTION_LIST, for the C loop of the benchmarks."""
        return <size_t>self.functions()
