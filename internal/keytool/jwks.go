package keytool

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"

	"authsession/internal/bearer"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json"
)

// JWKS is the command "authsession jwks": it prints the key set of the keys in PEM files, one a file, private or
// public. Of a private key it prints the public half alone. It prints all of them or, with an error, nothing.
func JWKS(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("authsession jwks", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, "Usage: authsession jwks a.pem b.pem …\nprints the key set of these private or public keys")
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("jwks needs the files of keys")
	}
	var set jose.JSONWebKeySet
	for _, file := range flags.Args() {
		key, err := readPublic(file)
		if err != nil {
			return fmt.Errorf("%s %w", file, err)
		}
		if slices.ContainsFunc(set.Keys, func(k jose.JSONWebKey) bool { return k.KeyID == key.KeyID }) {
			return fmt.Errorf("%s holds a key that another file has too", file)
		}
		set.Keys = append(set.Keys, key)
	}
	encoded, err := json.Marshal(set)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s\n", encoded)
	return err
}

// readPublic reads a file's key. It has an algorithm where it fits only one:
// an RSA key fits several, and is good for each that JWT_ALGORITHMS lists.
func readPublic(file string) (jose.JSONWebKey, error) {
	key, err := readPEM(file)
	if err != nil {
		return jose.JSONWebKey{}, err
	}
	if private, ok := key.(crypto.Signer); ok {
		key = private.Public()
	}
	public := jose.JSONWebKey{Key: key, Use: "sig"}
	fitting := fittingAlgorithms(public)
	if len(fitting) == 0 {
		return public, fmt.Errorf("must hold a private or public key in PEM: RSA of %d bits or more, "+
			"EC on P-256, P-384 or P-521, or Ed25519", bearer.MinRSABits)
	}
	public.KeyID, err = keyID(public)
	if len(fitting) == 1 {
		public.Algorithm = string(fitting[0])
	}
	return public, err
}

// readPEM returns the first private or public key in a file, of crypto's types; nil is none.
func readPEM(file string) (key any, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	for block, rest := pem.Decode(data); block != nil && key == nil; block, rest = pem.Decode(rest) {
		switch block.Type { // "EC PARAMETERS" may stand before a key
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
			key, err = nil, nil // a nil pointer in key would not equal nil
		}
	}
	return key, nil
}

// fittingAlgorithms are those of bearer.Algorithms that a public key fits.
func fittingAlgorithms(public jose.JSONWebKey) []jose.SignatureAlgorithm {
	return slices.DeleteFunc(slices.Clone(bearer.Algorithms),
		func(known jose.SignatureAlgorithm) bool { return !bearer.Fits(public, known) })
}
