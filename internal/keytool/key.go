package keytool

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
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
	curves := map[jose.SignatureAlgorithm]elliptic.Curve{
		jose.ES256: elliptic.P256(), jose.ES384: elliptic.P384(), jose.ES512: elliptic.P521()}
	var private crypto.Signer
	var err error
	switch curve := curves[alg]; {
	case alg == jose.EdDSA:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case curve != nil:
		private, err = ecdsa.GenerateKey(curve, rand.Reader)
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

// Write writes the private key in PEM (PKCS#8) to a new file, for its owner alone. It leaves no file if it fails.
func (k Key) Write(file string) error {
	der, err := x509.MarshalPKCS8PrivateKey(k.Private)
	if err != nil {
		return fmt.Errorf("encoding the key: %w", err)
	}
	return writeNew(file, 0o600, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// Read returns the only private key in a PEM file, which may hold public keys and certificates, too. The key signs by
// alg or, for "", by the first of bearer.Algorithms that it fits. The error names the file.
func Read(file string, alg jose.SignatureAlgorithm) (Key, error) {
	keys, err := readKeys(file)
	if err != nil {
		return Key{}, err
	}
	keys = slices.DeleteFunc(keys, func(k jose.JSONWebKey) bool { return k.IsPublic() })
	if len(keys) != 1 {
		return Key{}, fmt.Errorf("%s does not hold exactly one private key", file)
	}
	fitting := algorithms(keys[0])
	if alg = cmp.Or(alg, fitting[0]); !slices.Contains(fitting, alg) {
		return Key{}, fmt.Errorf("%s holds a key for %s, not for %s", file, fitting, alg)
	}
	return Key{ID: keys[0].KeyID, Algorithm: alg, Private: keys[0].Key.(crypto.Signer)}, nil
}

// readKeys returns the keys in a PEM file, private or public, at least one. Each has a kid and no alg. The error names
// the file, the block that has no usable key, and the reason.
func readKeys(file string) (keys []jose.JSONWebKey, err error) {
	const begin = "-----BEGIN "
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for i, text := range strings.Split(string(data), begin)[1:] {
		block, _ := pem.Decode([]byte(begin + text + "\n")) // block by block, because Decode passes over damaged ones
		block = cmp.Or(block, &pem.Block{Type: "damaged"})
		if block.Type == "EC PARAMETERS" { // may precede a key
			continue
		}
		key := jose.JSONWebKey{Use: "sig"}
		switch key.Key, err = parseKey(block); {
		case err == nil && len(algorithms(key)) == 0:
			err = errors.New("its type or size is not supported")
		case err == nil:
			key.KeyID, err = keyID(key)
		}
		if err != nil {
			return nil, fmt.Errorf("%s has no usable key in PEM block %d (%s): %w; a key must be RSA of %d to %d "+
				"bits, not RSASSA-PSS, or EC on P-256, P-384 or P-521, or Ed25519",
				file, i+1, block.Type, err, bearer.MinRSABits, bearer.MaxRSABits)
		}
		keys = append(keys, key)
	}
	if keys == nil {
		err = fmt.Errorf("%s has no key in PEM", file)
	}
	return keys, err
}

// algorithms returns those of bearer.Algorithms that a key fits, which only for RSA keys are several.
func algorithms(key jose.JSONWebKey) []jose.SignatureAlgorithm {
	return slices.DeleteFunc(slices.Clone(bearer.Algorithms), func(alg jose.SignatureAlgorithm) bool {
		return !bearer.Fits(key.Public(), alg)
	})
}

// parseKey returns the block's private or public key, as a type of package crypto.
func parseKey(block *pem.Block) (any, error) {
	if block.Headers["DEK-Info"] != "" || block.Type == "ENCRYPTED PRIVATE KEY" { // RFC 1421, RFC 7468
		return nil, errors.New("it is encrypted")
	}
	switch block.Type {
	case "PRIVATE KEY":
		return x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		return x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		return x509.ParsePKCS1PrivateKey(block.Bytes)
	case "PUBLIC KEY":
		return x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		return x509.ParsePKCS1PublicKey(block.Bytes)
	case "CERTIFICATE":
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		return certificate.PublicKey, nil
	}
	return nil, errors.New("it is not readable")
}
