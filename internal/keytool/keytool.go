// Package keytool makes keys, key sets and tokens, for an operator who has no authorization server yet.
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
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"authsession/internal/bearer"

	"github.com/go-jose/go-jose/v4"
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
	return newKey(alg, private)
}

func newKey(alg jose.SignatureAlgorithm, private crypto.Signer) (Key, error) {
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
	return k.sign(claims, "at+jwt") // a service accepts this type with and without JWT_TYP
}

// Sign returns claims as a compact JWT of type JWT.
func (k Key) Sign(claims map[string]any) (string, error) { return k.sign(claims, "JWT") }

func (k Key) sign(claims map[string]any, typ jose.ContentType) (string, error) {
	options := (&jose.SignerOptions{}).WithType(typ).WithHeader("kid", k.ID)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: k.Algorithm, Key: k.Private}, options)
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}

// readPEM returns the first private or public key in a file, as a type of package crypto, or nil if it holds no key.
func readPEM(file string) (key any, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	for block, rest := pem.Decode(data); block != nil && key == nil; block, rest = pem.Decode(rest) {
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
			key, err = nil, nil // because an interface that holds a nil pointer does not equal nil
		}
	}
	return key, nil
}

// fittingAlgorithms returns those of bearer.Algorithms that a public key can verify. Only RSA keys fit several.
func fittingAlgorithms(public jose.JSONWebKey) []jose.SignatureAlgorithm {
	return slices.DeleteFunc(slices.Clone(bearer.Algorithms),
		func(alg jose.SignatureAlgorithm) bool { return !bearer.Fits(public, alg) })
}

// newFlags returns the flags of a command. Its errors and its help go to stderr.
func newFlags(command string, stderr io.Writer) *flag.FlagSet {
	flags := flag.NewFlagSet("authsession "+command, flag.ContinueOnError)
	flags.SetOutput(stderr)
	return flags
}

// parseFlags parses args, which must be flags only.
func parseFlags(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%s takes flags only, and not %q", flags.Name(), flags.Arg(0))
	}
	return nil
}
