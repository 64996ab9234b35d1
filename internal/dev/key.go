package dev

import (
	"crypto"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"authsession/internal/bearer"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json"
)

// keepKey replaces the new key by the one that an earlier run has kept, or else keeps it for later runs, because
// backends use a token over a restart. It returns what to print. Each algorithm has a file in the user's cache folder. A
// file that holds something else stays as it is.
func (d *Dev) keepKey() string {
	folder, err := os.UserCacheDir()
	file := filepath.Join(folder, "authsession", "dev-"+string(d.key.Algorithm)+".jwk")
	var data []byte
	if err == nil {
		data, err = os.ReadFile(file)
	}
	var kept jose.JSONWebKey
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = d.writeKey(file)
	case err != nil:
	case json.Unmarshal(data, &kept) != nil || kept.IsPublic() || !bearer.Fits(kept.Public(), d.key.Algorithm):
		err = errors.New(file + " does not hold a private key for " + string(d.key.Algorithm))
	default:
		d.key.ID, d.key.Private = kept.KeyID, kept.Key.(crypto.Signer)
	}
	if err != nil {
		return "of this run alone, because " + err.Error()
	}
	return file + ", kept for later runs"
}

// writeKey writes the key to file in one step, because other runs may start at the same time.
func (d *Dev) writeKey(file string) error {
	data, err := json.Marshal(jose.JSONWebKey{Key: d.key.Private, KeyID: d.key.ID, Algorithm: string(d.key.Algorithm)})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	whole := file + "." + rand.Text()
	defer os.Remove(whole) // fails after the renaming
	if err := os.WriteFile(whole, data, 0o600); err != nil {
		return err
	}
	return os.Rename(whole, file)
}
