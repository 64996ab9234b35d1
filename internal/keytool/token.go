package keytool

import (
	"crypto"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"authsession/internal/bearer"

	"github.com/go-jose/go-jose/v4"
)

// Token runs "authsession token". It prints a token that the private key of -key signs.
func Token(args []string, stdout, stderr io.Writer) error {
	const maxTTL = 365 * 24 * time.Hour
	flags := newFlags("token", stderr)
	file := flags.String("key", "", "sign with the private key in this `file` (PEM)")
	name := flags.String("alg", "", "sign with this `algorithm`; only an RSA key that is not for RS256 needs it")
	client := flags.String("client", "", "the client's `name` (client_id)")
	scopes := flags.String("scope", bearer.Scope, "scope `names`, separated by spaces")
	issuer := flags.String("issuer", "", "iss, as the service's `JWT_ISSUER`")
	audience := flags.String("audience", "", "aud, as the service's `JWT_AUDIENCE`")
	ttl := flags.Duration("ttl", time.Hour, "lifetime of the token")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	switch {
	case *file == "":
		return errors.New("-key is required: the private key's file")
	case *client == "":
		return errors.New("-client is required: the client's name")
	case *ttl < time.Second || *ttl > maxTTL:
		return fmt.Errorf("-ttl must be from %s to %s", time.Second, maxTTL)
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
		fmt.Fprintln(stderr, "-ttl is above 24h: the service refuses the token unless JWT_MAX_LIFETIME is as long")
	}
	_, err = fmt.Fprintln(stdout, token)
	return err
}

// readKey returns the private key in the file of -key. If alg, the value of -alg, is "", the key gets the first
// algorithm that it fits.
func readKey(file string, alg jose.SignatureAlgorithm) (Key, error) {
	parsed, err := readPEM(file)
	if err != nil {
		return Key{}, fmt.Errorf("-key %w", err)
	}
	private, ok := parsed.(crypto.Signer)
	if !ok {
		return Key{}, errors.New("-key must hold a private key in PEM")
	}
	fitting := fittingAlgorithms(jose.JSONWebKey{Key: private.Public()})
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
