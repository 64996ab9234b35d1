// Package seal keeps a session's record from whoever reads or writes Redis, by a key that only the session's secret
// gives. Redis has the secret's SHA-256, which gives nothing.
//
// A sealed record is the byte 0x01, a random nonce of 12 bytes, and the record under AES-256-GCM, its tag of 16 bytes
// last. There is no additional data. The key is HMAC-SHA256 of "authsession record" under the secret.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
)

const sealed = 0x01 // the first byte of a sealed record; a plain one begins with {

// Seal seals a record for whoever has its session's secret.
func Seal(secret string, record []byte) []byte {
	return gcm(secret).Seal([]byte{sealed}, nil, record, nil)
}

// Open returns the record in value, which may also be a plain one. It fails where the secret is another's, or value is
// no record.
func Open(secret string, value []byte) ([]byte, error) {
	switch {
	case len(value) > 0 && value[0] == '{':
		return value, nil
	case len(value) > 0 && value[0] == sealed:
		return gcm(secret).Open(nil, nil, value[1:], nil)
	}
	return nil, errors.New("the record is neither JSON nor sealed")
}

func gcm(secret string) cipher.AEAD {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte("authsession record"))
	block, err := aes.NewCipher(mac.Sum(nil))
	if err != nil {
		panic(err) // of a key of 32 bytes
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // of AES
	}
	return gcm
}
