package keytool

import (
	"crypto"
	"errors"
	"fmt"
	"io"
	"slices"

	"authsession/internal/bearer"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json"
)

// JWKS runs "authsession jwks". It prints the key set of the keys in PEM files, one key per file. For a private key it
// prints the public key. If one file is wrong, it prints nothing and returns an error.
func JWKS(args []string, stdout, stderr io.Writer) error {
	flags := newFlags("jwks", stderr)
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

// readPublic returns the public key of a file. The key has an alg only if it fits just one algorithm, so that an RSA
// key stays valid for each RSA algorithm in JWT_ALGORITHMS.
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
