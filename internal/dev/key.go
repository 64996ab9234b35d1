package dev

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"authsession/internal/keytool"
)

// keepKey uses the key of an earlier run in place of the new key, or else keeps the new one for later runs, because
// backends use a token over a restart. It returns the text to print. Each algorithm has a file in the user's cache
// folder. A file that holds something else stays as it is.
func (d *Dev) keepKey() string {
	folder, err := os.UserCacheDir()
	folder = filepath.Join(folder, "authsession")
	file := filepath.Join(folder, "dev-"+string(d.key.Algorithm)+".pem")
	var kept keytool.Key
	if err == nil {
		kept, err = keytool.Read(file, d.key.Algorithm)
	}
	if errors.Is(err, fs.ErrNotExist) {
		kept, err = d.key, os.MkdirAll(folder, 0o700)
		if err == nil {
			err = kept.Write(file)
		}
	}
	if err != nil {
		return "of this run alone: " + err.Error()
	}
	d.key = kept
	return file + ", kept for later runs"
}
