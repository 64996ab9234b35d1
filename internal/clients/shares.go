package clients

import (
	"errors"
	"sync"
)

// Errors of Shares.Acquire.
var (
	ErrFull  = errors.New("too many requests are in work")
	ErrShare = errors.New("too many of this client's requests are in work")
)

// Shares limits the number of requests in work, in all and by client. No client can crowd out the others, because one
// client may hold at most three quarters of the places. Shares is safe for concurrent use.
type Shares struct {
	max          int
	maxPerClient int

	mu       sync.Mutex
	inUse    int
	byClient map[string]int // places in use; a client without one is not in the map
}

// NewShares returns Shares with this number of places, 1 or more.
func NewShares(places int) *Shares {
	return &Shares{max: places, maxPerClient: max(1, places*3/4), byClient: map[string]int{}}
}

// Acquire takes a place for a client, which must Release it. It returns ErrFull if all places are in use, or ErrShare
// if the client holds as many as one client may.
func (s *Shares) Acquire(clientID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.inUse >= s.max:
		return ErrFull
	case s.byClient[clientID] >= s.maxPerClient:
		return ErrShare
	}
	s.inUse++
	s.byClient[clientID]++
	return nil
}

// Release gives back a place that the client has acquired.
func (s *Shares) Release(clientID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inUse--
	if s.byClient[clientID]--; s.byClient[clientID] == 0 {
		delete(s.byClient, clientID)
	}
}

// InUse returns the number of places in use.
func (s *Shares) InUse() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inUse
}

// Max returns the number of places.
func (s *Shares) Max() int { return s.max }
