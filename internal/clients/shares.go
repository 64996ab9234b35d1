package clients

import "sync"

// Shares limits the requests in flight, in all and by client. One client may hold at most three quarters of the places,
// so it cannot crowd out the others. Shares is safe for concurrent use.
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

// Acquire takes a place for a client, which must Release it. It reports false if all places are in use, or as many as
// one client may hold.
func (s *Shares) Acquire(clientID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inUse >= s.max || s.byClient[clientID] >= s.maxPerClient {
		return false
	}
	s.inUse++
	s.byClient[clientID]++
	return true
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
