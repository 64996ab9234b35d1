// Package seal encrypts session records so that only the session's secret opens them. Redis stores the secret's
// SHA-256, from which the key cannot be derived.
//
// A sealed record is the byte 0x01, a random nonce of 12 bytes, and the record encrypted with AES-256-GCM, with its tag
// of 16 bytes at the end and without additional data. The key is HMAC-SHA256 with the secret as its key and
// "authsession record" as its message.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
)

const sealed = 0x01 // the first byte of a sealed record; a plain record begins with {

// Seal encrypts record with a key derived from secret.
func Seal(secret string, record []byte) []byte {
	return newAEAD(secret).Seal([]byte{sealed}, nil, record, nil)
}

// Open returns the record in value, which may be sealed or plain. It returns an error if value was sealed with another
// secret, was changed, or is neither kind of record.
func Open(secret string, value []byte) ([]byte, error) {
	switch {
	case len(value) > 0 && value[0] == '{':
		return value, nil
	case len(value) > 0 && value[0] == sealed:
		return newAEAD(secret).Open(nil, nil, value[1:], nil)
	}
	return nil, errors.New("the record is neither JSON nor sealed")
}

// newAEAD returns an AES-256-GCM that writes and reads its nonce in front of the ciphertext.
func newAEAD(secret string) cipher.AEAD {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte("authsession record"))
	block, err := aes.NewCipher(mac.Sum(nil))
	if err != nil {
		panic(err) // impossible: the key has 32 bytes
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // impossible: the block size is that of AES
	}
	return aead
}
