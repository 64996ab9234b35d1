// Package clients limits what each client may do, by the operator's clients file and by shares of the service's
// capacity. In the file, such as
//
//	{"clients": {"acme": {"redirect_uris": ["https://acme.com/cb"], "sessions_per_minute": 600}, "*": {}}}
//
// the name "*" stands for all clients that are not listed. The members of a client are redirect_uris, institution_ids,
// permissions, session_ttl and sessions_per_minute. An absent member allows what the service allows, an empty list
// allows nothing, and null is an error.
package clients

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

const (
	maxFileSize  = 1 << 20 // bytes
	readInterval = time.Second
)

// File is a clients file. It keeps the rules of its last valid version. A nil *File allows every client what the
// service allows.
type File struct {
	path           string
	minTTL, maxTTL time.Duration

	clients  atomic.Pointer[map[string]*Client]
	fresh    atomic.Bool
	document []byte // the source of clients; only load uses it
}

// Open reads the file. A session_ttl must be from minTTL to maxTTL. The error has a line for each fault, with the
// client, the member and the broken rule.
func Open(path string, minTTL, maxTTL time.Duration) (*File, error) {
	f := &File{path: path, minTTL: minTTL, maxTTL: maxTTL}
	f.clients.Store(&map[string]*Client{})
	_, err := f.load()
	return f, err
}

// Run reads the file every second until ctx ends. It logs each version that it finds valid, also the first. If the file
// is invalid, its last valid version stays in force, and Run logs the error once.
func (f *File) Run(ctx context.Context, log *slog.Logger) {
	if f == nil {
		return
	}
	tick := time.NewTicker(readInterval)
	defer tick.Stop()
	for changed, logged := true, ""; ; {
		if changed {
			log.Info("clients file loaded", "clients", len(*f.clients.Load()))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var err error
		changed, err = f.load()
		cause := fmt.Sprint(err)
		if err != nil && cause != logged {
			log.Error("reading the clients file failed, the last good one stays", "cause", cause)
		}
		logged = cause
	}
}

// load reads the file and reports whether its content has changed.
func (f *File) load() (changed bool, err error) {
	document, err := os.ReadFile(f.path)
	if err == nil && len(document) > maxFileSize {
		err = fmt.Errorf("more than %d bytes", maxFileSize)
	}
	if err == nil && (f.document == nil || !bytes.Equal(document, f.document)) {
		var clients map[string]*Client
		if clients, err = f.parse(document); err == nil {
			f.clients.Store(&clients)
			f.document, changed = document, true
		}
	}
	f.fresh.Store(err == nil)
	return changed, err
}

// Find returns the rules of the client with this name, else those of "*", else nil: the client may do nothing.
func (f *File) Find(name string) *Client {
	if f == nil {
		return &Client{}
	}
	clients := *f.clients.Load()
	return cmp.Or(clients[name], clients["*"])
}

// Fresh reports whether the latest read succeeded.
func (f *File) Fresh() bool { return f.fresh.Load() }
