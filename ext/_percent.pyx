# Percent-encoding of request parameters (RFC 3986 section 2.1), both ways: most of the bytes of a request pass through here twice.
"""The compiled part of kmscore.signing and kmscore.api.params: encode, decode. Its face is _percent.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8
from libc.string cimport memchr

cdef extern from *:
    """
    static const char percent_digits[] = "0123456789ABCDEF";
    static signed char percent_value[256];      /* of a hexadecimal digit; -1: it is none */
    static unsigned char percent_unreserved[256];
    static void percent_tables(void)
    {
        for (int c = 0; c < 256; c++) {
            percent_value[c] = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10
                : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
            percent_unreserved[c] = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '-' || c == '.'
                || c == '_' || c == '~';
        }
    }
    static Py_ssize_t percent_encoded_size(const unsigned char *from, Py_ssize_t size)
    {
        Py_ssize_t more = 0;
        for (Py_ssize_t i = 0; i < size; i++)
            more += percent_unreserved[from[i]] ? 0 : 2;
        return size + more;
    }
    static void percent_encode(const unsigned char *from, Py_ssize_t size, char *to)
    {
        for (Py_ssize_t i = 0; i < size; i++) {
            unsigned char c = from[i];
            if (percent_unreserved[c]) {
                *to++ = c;
            } else {
                *to++ = '%';
                *to++ = percent_digits[c >> 4];
                *to++ = percent_digits[c & 15];
            }
        }
    }
    /* Answers the size of what was decoded, or -1 for a '%' without two digits behind it. */
    static Py_ssize_t percent_decode(const unsigned char *from, Py_ssize_t size, char *to)
    {
        const char *start = to;
        for (Py_ssize_t i = 0; i < size; i++) {
            unsigned char c = from[i];
            if (c == '%') {
                int high, low;
                if (size - i < 3 || (high = percent_value[from[i + 1]]) < 0 || (low = percent_value[from[i + 2]]) < 0)
                    return -1;
                c = high << 4 | low;
                i += 2;
            } else if (c == '+') {
                c = ' ';
            }
            *to++ = c;
        }
        return to - start;
    }
    """
    void percent_tables() nogil
    Py_ssize_t percent_encoded_size(const unsigned char *source, Py_ssize_t size) nogil
    void percent_encode(const unsigned char *source, Py_ssize_t size, char *to) nogil
    Py_ssize_t percent_decode(const unsigned char *source, Py_ssize_t size, char *to) nogil

percent_tables()


def encode(text):
    """All but the unreserved characters as %XX of their UTF-8, in upper case. Raises UnicodeEncodeError for a lone surrogate.

    Takes subclasses of str as well: members of our enumerations are.
    """
    cdef Py_ssize_t size
    cdef const char *source = PyUnicode_AsUTF8AndSize(text, &size)
    cdef Py_ssize_t needed = percent_encoded_size(<const unsigned char *>source, size)
    if needed == size and type(text) is str:
        return text
    cdef bytes made = PyBytes_FromStringAndSize(NULL, needed)
    percent_encode(<const unsigned char *>source, size, PyBytes_AS_STRING(made))
    return PyUnicode_DecodeASCII(PyBytes_AS_STRING(made), needed, NULL)


def decode(bytes text not None):
    """With %XX and + decoded, as UTF-8.

    Raises ValueError for a % without two hexadecimal digits, UnicodeDecodeError for what is not UTF-8.
    """
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text)
    cdef const char *source = PyBytes_AS_STRING(text)
    if memchr(source, c'%', size) == NULL and memchr(source, c'+', size) == NULL:
        return PyUnicode_DecodeUTF8(source, size, NULL)
    cdef bytes made = PyBytes_FromStringAndSize(NULL, size)
    cdef Py_ssize_t found = percent_decode(<const unsigned char *>source, size, PyBytes_AS_STRING(made))
    if found < 0:
        raise ValueError("a '%' is not followed by two hexadecimal digits")
    return PyUnicode_DecodeUTF8(PyBytes_AS_STRING(made), found, NULL)
