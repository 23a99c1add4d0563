/* The key derivation of XAES-256-GCM (C2SP XAES-256-GCM; docs/FORMAT.md), free of any cipher. */
#ifndef KMS_XAES_H
#define KMS_XAES_H

/* K1 from L = AES-256(K, 0^128): L doubled in GF(2^128), as CMAC does (SP 800-38B). Branch-free. */
void xaes_k1(const unsigned char l[16], unsigned char k1[16]);

/* The two blocks (M1 ^ K1) || (M2 ^ K1) whose encryption under K is Kx; prefix is the first half of the nonce. */
void xaes_blocks(const unsigned char k1[16], const unsigned char prefix[12], unsigned char blocks[32]);

#endif
