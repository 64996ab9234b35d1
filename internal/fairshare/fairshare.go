// Package fairshare bounds how many of something are in use, in all and by one client, so that no client alone can take
// all of them: one client holds at most three quarters.
package fairshare

import (
	"errors"
	"sync"
)

var (
	// ErrFull means that all places are taken.
	ErrFull = errors.New("too many requests are in work")
	// ErrShare means that the client has all that one client may have.
	ErrShare = errors.New("too many of this client's requests are in work")
)

// Places is a number of places to take. Its methods may be called at the same time.
type Places struct {
	most, share int // in all, and for one client

	mu    sync.Mutex
	taken int
	by    map[string]int // places by client; without those that have none
}

// New returns so many places, 1 or more.
func New(most int) *Places {
	return &Places{most: most, share: max(1, most*3/4), by: map[string]int{}}
}

// Take gives client a place, which it must Leave, or returns ErrFull or ErrShare.
func (p *Places) Take(client string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.taken >= p.most:
		return ErrFull
	case p.by[client] >= p.share:
		return ErrShare
	}
	p.taken++
	p.by[client]++
	return nil
}

// Leave gives back a place that client has taken.
func (p *Places) Leave(client string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if p.by[client]--; p.by[client] == 0 {
		delete(p.by, client)
	}
}

// Most is how many places there are.
func (p *Places) Most() int { return p.most }

// Taken is how many are taken now.
func (p *Places) Taken() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken
}
