// Package clients says which client may do what, by the operator's clients file.
//
// The file is a JSON object, read by internal/strictjson's rules, in which any other member is an error:
//
//	{"clients": {"acme": {"redirect_uris": ["https://acme.com/cb"], "sessions_per_minute": 600}, "*": {}}}
//
// "*" stands for all clients that are not listed. Each member of a client is optional: an absent one allows what the
// service allows, an empty list allows none, and null is an error.
//
//	redirect_uris        where the browser may go; see AllowsURI
//	institution_ids      which institutions a session may be for
//	permissions          what may be asked for, and what a request asks for that names none
//	session_ttl          lifetime of a session, as a Go duration
//	sessions_per_minute  1 to 1,000,000; see Take
package clients

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

const (
	maxFile = 1 << 20     // bytes
	every   = time.Second // between readings
)

// File is the clients file as it was last read well. A nil *File allows every client what the service allows.
type File struct {
	path              string
	leastTTL, mostTTL time.Duration

	clients  atomic.Pointer[map[string]*Client]
	read     atomic.Int64 // when the file was last read well, in Unix seconds
	fresh    atomic.Bool  // the last reading went well
	document []byte       // that clients came from; used by load alone
}

// Open reads the file. A session_ttl in it must be from leastTTL to mostTTL. The error names the client, the member and
// the rule that it breaks.
func Open(path string, leastTTL, mostTTL time.Duration) (*File, error) {
	f := &File{path: path, leastTTL: leastTTL, mostTTL: mostTTL}
	_, err := f.load()
	return f, err
}

// Run reads the file again each second until ctx ends. A bad one leaves the last good one in force, and is logged once.
func (f *File) Run(ctx context.Context, log *slog.Logger) {
	if f == nil {
		return
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for failure := ""; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		switch changed, err := f.load(); {
		case err == nil:
			if failure = ""; changed {
				log.Info("clients file loaded", "clients", len(*f.clients.Load()))
			}
		case err.Error() != failure:
			failure = err.Error()
			log.Error("reading the clients file failed, the last good one stays", "cause", failure)
		}
	}
}

func (f *File) load() (changed bool, err error) {
	document, err := readFile(f.path)
	if err == nil && (f.document == nil || !bytes.Equal(document, f.document)) {
		var found map[string]*Client
		if found, err = f.parse(document); err == nil {
			f.clients.Store(&found)
			f.document, changed = document, true
		}
	}
	if f.fresh.Store(err == nil); err == nil {
		f.read.Store(time.Now().Unix())
	}
	return changed, err
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular(): // a pipe would block
		return nil, errors.New("not a regular file")
	case info.Size() > maxFile:
		return nil, fmt.Errorf("more than %d bytes", maxFile)
	}
	return os.ReadFile(path)
}

var anything = &Client{}

// Find returns the client's rules: its own, those of "*", or nil for a client that may do nothing.
func (f *File) Find(name string) *Client {
	if f == nil {
		return anything
	}
	clients := *f.clients.Load()
	if c := clients[name]; c != nil {
		return c
	}
	return clients["*"]
}

// Read returns when the file was last read well, in Unix seconds, and whether the last reading went well.
func (f *File) Read() (last int64, fresh bool) { return f.read.Load(), f.fresh.Load() }
