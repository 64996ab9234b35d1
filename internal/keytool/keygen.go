package keytool

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"authsession/internal/bearer"

	"github.com/go-jose/go-jose/v4"
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
	alg := jose.SignatureAlgorithm(*name)
	switch {
	case *keyFile == "":
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
	set = append(set, '\n')
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})
	if err := writeNew(*keyFile, 0o600, private); err != nil {
		return fmt.Errorf("-out must be a new file: %w", err)
	}
	made := []string{*keyFile}
	if *setFile != "" {
		if err = writeNew(*setFile, 0o644, set); err != nil {
			err = fmt.Errorf("-jwks must be a new file: %w", err)
		} else {
			made = append(made, *setFile)
		}
	}
	if err == nil {
		_, err = stdout.Write(set)
	}
	if err != nil {
		for _, file := range made {
			err = errors.Join(err, os.Remove(file))
		}
		return fmt.Errorf("writing key and key set: %w", err)
	}
	return nil
}

// writeNew writes data to a file that must not exist. It leaves no file if it fails.
func writeNew(name string, mode os.FileMode, data []byte) error {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}
