// Package keytool stands in for an authorization server that is not there yet: it makes private keys, the key sets that
// the service checks tokens against, and tokens.
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
	"errors"
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
	ID        string // in key sets and tokens
	Algorithm jose.SignatureAlgorithm
	Private   crypto.Signer
}

// Generate makes a new key for one of bearer.Algorithms.
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
		return Key{}, fmt.Errorf("making a key: %w", err)
	}
	return newKey(alg, private)
}

func newKey(alg jose.SignatureAlgorithm, private crypto.Signer) (Key, error) {
	id, err := keyID(jose.JSONWebKey{Key: private.Public()})
	return Key{id, alg, private}, err
}

// keyID names a key by its thumbprint (RFC 7638), so that the key alone tells its id.
func keyID(public jose.JSONWebKey) (string, error) {
	thumbprint, err := public.Thumbprint(crypto.SHA256)
	return base64.RawURLEncoding.EncodeToString(thumbprint), err
}

// Public is the key's public half as it stands in a key set, for its algorithm alone.
func (k Key) Public() jose.JSONWebKey {
	return jose.JSONWebKey{Key: k.Private.Public(), KeyID: k.ID, Algorithm: string(k.Algorithm), Use: "sig"}
}

// Set is the key set that holds the key's public half alone, as JSON.
func (k Key) Set() ([]byte, error) {
	return json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{k.Public()}})
}

// Issue returns a token with these claims, those that are "" left out, that is good from now for ttl.
func (k Key) Issue(ttl time.Duration, texts map[string]string) (string, error) {
	now := time.Now()
	claims := map[string]any{"iat": now.Unix(), "exp": now.Add(ttl).Unix(), "jti": rand.Text()}
	for name, text := range texts {
		if text != "" {
			claims[name] = text
		}
	}
	return k.sign(claims, "at+jwt") // which is good whatever JWT_TYP says
}

// Sign returns claims as a compact JWT of the type JWT.
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

// Keygen is the command "authsession keygen": it writes a new private key to a file, and prints the key set of its
// public half, which -jwks has it write to a file too. It overwrites no file; where it fails, it leaves none.
func Keygen(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("authsession keygen", flag.ContinueOnError)
	flags.SetOutput(stderr)
	out := flags.String("out", "", "write the private key to this new `file` (PKCS#8 PEM)")
	setFile := flags.String("jwks", "", "write the key set to this new `file` too")
	// Of the default JWT_ALGORITHMS, all that check tokens know ES256, and so does the hardware that a bank may keep
	// the key in later. Its keys and signatures are small.
	name := flags.String("alg", string(jose.ES256),
		"sign with this `algorithm`: one of the service's JWT_ALGORITHMS")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	alg := jose.SignatureAlgorithm(*name)
	switch {
	case *out == "":
		return errors.New("-out is required: a new file for the private key")
	case !slices.Contains(bearer.Algorithms, alg):
		return fmt.Errorf("-alg must be one of %s", bearer.Algorithms)
	}
	key, err := Generate(alg)
	if err != nil {
		return err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key.Private)
	if err != nil {
		return fmt.Errorf("encoding the key: %w", err)
	}
	set, err := key.Set()
	if err != nil {
		return err
	}
	file, err := os.OpenFile(*out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("-out must be a new file: %w", err)
	}
	made := []string{*out}
	err = errors.Join(pem.Encode(file, &pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), file.Close())
	if err == nil && *setFile != "" {
		if file, err = os.OpenFile(*setFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); err == nil {
			made = append(made, *setFile)
			_, err = fmt.Fprintf(file, "%s\n", set)
			err = errors.Join(err, file.Close())
		} else {
			err = fmt.Errorf("-jwks must be a new file: %w", err)
		}
	}
	if err == nil {
		_, err = fmt.Fprintf(stdout, "%s\n", set)
	}
	if err != nil { // a key whose set nobody has seen would only be in the way
		for _, name := range made {
			err = errors.Join(err, os.Remove(name))
		}
		return fmt.Errorf("writing key and key set: %w", err)
	}
	return nil
}

// Token is the command "authsession token": it prints a token by a private key from Keygen.
func Token(args []string, stdout, stderr io.Writer) error {
	const longest = 365 * 24 * time.Hour
	flags := flag.NewFlagSet("authsession token", flag.ContinueOnError)
	flags.SetOutput(stderr)
	file := flags.String("key", "", "sign with the private key in this `file` (PEM)")
	name := flags.String("alg", "", "sign with this `algorithm`: only needed for an RSA key that is not for RS256")
	client := flags.String("client", "", "the `name` of who gets the token (client_id)")
	scopes := flags.String("scope", bearer.Scope, "scope `names`, with spaces between")
	issuer := flags.String("issuer", "", "iss, as the service's `JWT_ISSUER`")
	audience := flags.String("audience", "", "aud, as the service's `JWT_AUDIENCE`")
	ttl := flags.Duration("ttl", time.Hour, "how long the token is good")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	switch {
	case *file == "":
		return errors.New("-key is required: the private key's file")
	case *client == "":
		return errors.New("-client is required: the name of who gets the token")
	case *ttl < time.Second || *ttl > longest:
		return fmt.Errorf("-ttl must be from %s to %s", time.Second, longest)
	}
	key, err := readKey(*file, jose.SignatureAlgorithm(*name))
	if err != nil {
		return err
	}
	claims := map[string]string{"client_id": *client, "scope": *scopes, "iss": *issuer, "aud": *audience}
	token, err := key.Issue(*ttl, claims)
	if err != nil {
		return fmt.Errorf("signing the token: %w", err)
	}
	if *ttl > 24*time.Hour {
		fmt.Fprintln(stderr, "-ttl is above 24h: the service takes the token only with a JWT_MAX_LIFETIME as long")
	}
	_, err = fmt.Fprintln(stdout, token)
	return err
}

// parseFlags parses the flags of a command that takes nothing else.
func parseFlags(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%s takes flags only, and not %q", flags.Name(), flags.Arg(0))
	}
	return nil
}

// readKey reads the file of the flag -key. alg is the flag -alg's, or "" for the first that the key fits: only RSA keys
// fit several.
func readKey(file string, alg jose.SignatureAlgorithm) (Key, error) {
	parsed, err := readPEM(file)
	if err != nil {
		return Key{}, fmt.Errorf("-key %w", err)
	}
	private, ok := parsed.(crypto.Signer)
	if !ok {
		return Key{}, errors.New("-key must hold a private key in PEM")
	}
	public := jose.JSONWebKey{Key: private.Public()}
	fitting := fittingAlgorithms(public)
	switch {
	case len(fitting) == 0:
		return Key{}, fmt.Errorf("-key must be an RSA key of %d bits or more, "+
			"an EC key on P-256, P-384 or P-521, or an Ed25519 key", bearer.MinRSABits)
	case alg == "":
		alg = fitting[0]
	case !slices.Contains(fitting, alg):
		return Key{}, fmt.Errorf("-alg must be one of %s for this -key", fitting)
	}
	return newKey(alg, private)
}
