// Package keytool makes keys, key sets and tokens, for an operator who has no authorization server yet.
package keytool

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"authsession/internal/bearer"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json"
)

// Keygen runs "authsession keygen". It writes a new private key to the file of -out and prints the key set with its
// public key, which it also writes to the file of -jwks. It overwrites no file, and leaves none if it fails.
func Keygen(args []string, stdout, stderr io.Writer) error {
	flags := newFlags("keygen", stderr)
	keyFile := flags.String("out", "", "write the private key to this new `file` (PKCS#8 PEM)")
	setFile := flags.String("jwks", "", "also write the key set to this new `file`")
	// ES256 is the default because every verifier knows it, and so do the hardware modules of banks. Its keys and
	// signatures are small.
	name := flags.String("alg", string(jose.ES256), "sign with this `algorithm`, one of the service's JWT_ALGORITHMS")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	alg, known := bearer.ParseAlgorithm(*name)
	switch {
	case *keyFile == "":
		return errors.New("-out is required: a new file for the private key")
	case !known:
		return fmt.Errorf("-alg must be one of %s", bearer.Algorithms)
	}
	key, err := Generate(alg)
	if err != nil {
		return err
	}
	set, err := key.Set()
	if err != nil {
		return err
	}
	set = append(set, '\n')
	if err := key.Write(*keyFile); err != nil {
		return fmt.Errorf("-out must be a new file: %w", err)
	}
	if *setFile != "" {
		if err := writeNew(*setFile, 0o644, set); err != nil {
			return fmt.Errorf("-jwks must be a new file: %w", errors.Join(err, os.Remove(*keyFile)))
		}
	}
	if _, err := stdout.Write(set); err != nil {
		if *setFile != "" {
			err = errors.Join(err, os.Remove(*setFile))
		}
		return fmt.Errorf("printing the key set: %w", errors.Join(err, os.Remove(*keyFile)))
	}
	return nil
}

// writeNew writes data to a file that must not exist. It leaves no file if it fails.
func writeNew(file string, mode os.FileMode, data []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	return nil
}

// JWKS runs "authsession jwks". It prints the key set of all keys in PEM files. For a private key it prints the public
// key, for a certificate its key. If a key is unusable or in two files, it prints nothing and returns an error.
func JWKS(args []string, stdout, stderr io.Writer) error {
	flags := newFlags("jwks a.pem b.pem …", stderr)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("jwks needs the files of keys")
	}
	var set jose.JSONWebKeySet
	for _, file := range flags.Args() {
		keys, err := readKeys(file)
		if err != nil {
			return err
		}
		others := set // the keys of the files before this one
		for _, key := range keys {
			if len(others.Key(key.KeyID)) > 0 {
				return fmt.Errorf("%s holds a key that another file has too", file)
			}
			if len(set.Key(key.KeyID)) > 0 { // a private key and its certificate, for instance
				continue
			}
			if fitting := algorithms(key); len(fitting) == 1 { // an RSA key stays valid for each RSA algorithm
				key.Algorithm = string(fitting[0])
			}
			set.Keys = append(set.Keys, key.Public())
		}
	}
	encoded, err := json.Marshal(set)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s\n", encoded)
	return err
}

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
	ttl := flags.Duration("ttl", time.Hour, "lifetime of the token; for more than 24h set JWT_MAX_LIFETIME")
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
	alg, _ := bearer.ParseAlgorithm(*name)
	key, err := Read(*file, alg)
	if err != nil {
		return fmt.Errorf("reading -key: %w", err)
	}
	claims := map[string]string{"client_id": *client, "scope": *scopes, "iss": *issuer, "aud": *audience}
	token, err := key.Issue(*ttl, claims)
	if err != nil {
		return fmt.Errorf("signing the token: %w", err)
	}
	_, err = fmt.Fprintln(stdout, token)
	return err
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
