package keytool

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"time"

	"authsession/internal/bearer"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/go-json-experiment/json"
)

// Key is a private key that signs tokens.
type Key struct {
	ID        string // the kid of key sets and tokens
	Algorithm jose.SignatureAlgorithm
	Private   crypto.Signer
}

// Generate returns a new key for alg, one of bearer.Algorithms.
func Generate(alg jose.SignatureAlgorithm) (Key, error) {
	var private crypto.Signer
	var err error
	switch alg {
	case jose.EdDSA:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case jose.ES256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.ES384:
		private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case jose.ES512:
		private, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	default:
		private, err = rsa.GenerateKey(rand.Reader, bearer.MinRSABits)
	}
	if err != nil {
		return Key{}, fmt.Errorf("generating a key: %w", err)
	}
	id, err := keyID(jose.JSONWebKey{Key: private.Public()})
	return Key{ID: id, Algorithm: alg, Private: private}, err
}

// keyID returns the key's SHA-256 thumbprint (RFC 7638), so that a key has the same kid wherever it is published.
func keyID(public jose.JSONWebKey) (string, error) {
	thumbprint, err := public.Thumbprint(crypto.SHA256)
	return base64.RawURLEncoding.EncodeToString(thumbprint), err
}

// Public returns the public key with its kid, alg and use.
func (k Key) Public() jose.JSONWebKey {
	return jose.JSONWebKey{Key: k.Private.Public(), KeyID: k.ID, Algorithm: string(k.Algorithm), Use: "sig"}
}

// Set returns a key set, as JSON, that holds only the public key.
func (k Key) Set() ([]byte, error) {
	return json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{k.Public()}})
}

// Issue returns a token that is valid from now for ttl. It adds iat, exp and jti to the claims in texts, and leaves out
// those that are "".
func (k Key) Issue(ttl time.Duration, texts map[string]string) (string, error) {
	now := time.Now()
	claims := map[string]any{"iat": now.Unix(), "exp": now.Add(ttl).Unix(), "jti": rand.Text()}
	for name, text := range texts {
		if text != "" {
			claims[name] = text
		}
	}
	return k.Sign(claims)
}

// Sign returns claims as a compact JWT of type at+jwt, which a service accepts with and without JWT_TYP.
func (k Key) Sign(claims map[string]any) (string, error) {
	options := (&jose.SignerOptions{}).WithType("at+jwt").WithHeader("kid", k.ID)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: k.Algorithm, Key: k.Private}, options)
	if err != nil {
		return "", err
	}
	return jwt.Signed(signer).Claims(claims).Serialize()
}

// readKey returns the first key in a PEM file that fits one of bearer.Algorithms, and all that it fits, which only for
// RSA keys are several. The key has a kid and no alg. The error follows the name of the file.
func readKey(file string) (key jose.JSONWebKey, fitting []jose.SignatureAlgorithm, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return key, nil, fmt.Errorf("cannot be read: %w", err)
	}
	for block, rest := pem.Decode(data); block != nil && fitting == nil; block, rest = pem.Decode(rest) {
		key = jose.JSONWebKey{Key: parseKey(block), Use: "sig"}
		for _, alg := range bearer.Algorithms {
			if bearer.Fits(key.Public(), alg) {
				fitting = append(fitting, alg)
			}
		}
	}
	if fitting == nil {
		return key, nil, fmt.Errorf("must hold a key in PEM: RSA of %d bits or more, "+
			"EC on P-256, P-384 or P-521, or Ed25519", bearer.MinRSABits)
	}
	key.KeyID, err = keyID(key)
	return key, fitting, err
}

// parseKey returns a private or public key, as a type of package crypto, or nil if block holds none.
func parseKey(block *pem.Block) (key any) {
	var err error
	switch block.Type { // "EC PARAMETERS" may precede a key
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	}
	if err != nil {
		return nil // not key, because an interface that holds a nil pointer does not equal nil
	}
	return key
}
