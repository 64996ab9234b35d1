package main

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
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// keygen writes a new private key to a file and prints the key set of its public key.
func keygen(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("authsession keygen", flag.ContinueOnError)
	flags.SetOutput(stderr)
	out := flags.String("out", "", "write the private key to this new `file` (PKCS#8 PEM)")
	// Of the default JWT_ALGORITHMS, all that check tokens know ES256, and so does the
	// hardware that a bank may keep the key in later. Its keys and signatures are small.
	name := flags.String("alg", string(jose.ES256), "sign with this `algorithm`: one of the service's JWT_ALGORITHMS")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	alg := jose.SignatureAlgorithm(*name)
	switch {
	case *out == "":
		return errors.New("-out is required: a new file for the private key")
	case !slices.Contains(knownAlgorithms, alg):
		return fmt.Errorf("-alg must be one of %s", knownAlgorithms)
	}
	key, err := generateKey(alg)
	if err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding the key: %w", err)
	}
	set, err := publicKeySet(alg, key)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(*out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("-out must be a new file: %w", err)
	}
	signal.Ignore(syscall.SIGPIPE) // a reader that is gone fails the write, and does not end us before the clean-up
	defer signal.Reset(syscall.SIGPIPE)
	err = errors.Join(pem.Encode(file, &pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), file.Close())
	if err == nil {
		_, err = fmt.Fprintf(stdout, "%s\n", encodeJSON(set))
	}
	if err != nil { // a key whose set nobody has seen would only be in the way
		return fmt.Errorf("writing key and key set: %w", errors.Join(err, os.Remove(*out)))
	}
	return nil
}

// printToken signs a token with a private key that keygen has made.
func printToken(args []string, stdout, stderr io.Writer) error {
	const longest = 365 * 24 * time.Hour
	flags := flag.NewFlagSet("authsession token", flag.ContinueOnError)
	flags.SetOutput(stderr)
	file := flags.String("key", "", "sign with the private key in this `file` (PKCS#8 PEM)")
	name := flags.String("alg", "", "sign with this `algorithm`: only needed for an RSA key that is not for RS256")
	client := flags.String("client", "", "the `name` of who gets the token (client_id)")
	scopes := flags.String("scope", scope, "scope `names`, with spaces between")
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
	key, alg, err := readKey(*file, jose.SignatureAlgorithm(*name))
	if err != nil {
		return err
	}
	token, err := issueToken(alg, key, *ttl, map[string]string{
		"client_id": *client,
		"scope":     *scopes,
		"iss":       *issuer,
		"aud":       *audience,
	})
	if err != nil {
		return fmt.Errorf("signing the token: %w", err)
	}
	if *ttl > 24*time.Hour {
		slog.New(slog.NewJSONHandler(stderr, nil)).Warn("-ttl is above 24h: the service takes the token only with a JWT_MAX_LIFETIME as long")
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

// readKey reads the flag -key's file, and tells which algorithm to sign with: the flag
// -alg's, or where that is "" the first that the key fits. Only RSA keys fit several.
func readKey(file string, alg jose.SignatureAlgorithm) (crypto.Signer, jose.SignatureAlgorithm, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, "", fmt.Errorf("reading -key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		block = &pem.Block{} // which is no key
	}
	parsed, _ := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, "", errors.New("-key must hold a private key in PKCS#8 PEM, as keygen writes it")
	}
	public := jose.JSONWebKey{Key: key.Public()}
	var fitting []jose.SignatureAlgorithm
	for _, known := range knownAlgorithms {
		if fits(public, string(known)) {
			fitting = append(fitting, known)
		}
	}
	switch {
	case len(fitting) == 0:
		return nil, "", fmt.Errorf("-key must be an RSA key of %d bits or more, an EC key on P-256, P-384 or P-521, or an Ed25519 key", rsaLeastBits)
	case alg == "":
		return key, fitting[0], nil
	case !slices.Contains(fitting, alg):
		return nil, "", fmt.Errorf("-alg must be one of %s for this -key", fitting)
	}
	return key, alg, nil
}

// generateKey makes a private key that signs alg.
func generateKey(alg jose.SignatureAlgorithm) (crypto.Signer, error) {
	switch alg {
	case jose.EdDSA:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case jose.ES256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.ES384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case jose.ES512:
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	}
	return rsa.GenerateKey(rand.Reader, rsaLeastBits)
}

// keyID is the thumbprint of key's public half (RFC 7638): the key alone tells its id.
func keyID(key crypto.Signer) (string, error) {
	thumbprint, err := (&jose.JSONWebKey{Key: key.Public()}).Thumbprint(crypto.SHA256)
	return base64.RawURLEncoding.EncodeToString(thumbprint), err
}

// publicKeySet is the set of key's public half, for alg alone.
func publicKeySet(alg jose.SignatureAlgorithm, key crypto.Signer) (jose.JSONWebKeySet, error) {
	kid, err := keyID(key)
	public := jose.JSONWebKey{Key: key.Public(), KeyID: kid, Algorithm: string(alg), Use: "sig"}
	return jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public}}, err
}

// issueToken is a token with these claims, "" being none, that is good from now for ttl.
func issueToken(alg jose.SignatureAlgorithm, key crypto.Signer, ttl time.Duration, texts map[string]string) (string, error) {
	kid, err := keyID(key)
	if err != nil {
		return "", err
	}
	now := time.Now()
	claims := map[string]any{"iat": now.Unix(), "exp": now.Add(ttl).Unix(), "jti": rand.Text()}
	for name, text := range texts {
		if text != "" {
			claims[name] = text
		}
	}
	return signToken(alg, key, kid, claims)
}

// signToken is claims as a compact JWT.
func signToken(alg jose.SignatureAlgorithm, key crypto.Signer, kid string, claims map[string]any) (string, error) {
	options := (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", kid)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, options)
	if err != nil {
		return "", err
	}
	signed, err := signer.Sign(encodeJSON(claims))
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}
