package clients_test

import (
	"fmt"
	"sync"
	"testing"

	"authsession/internal/clients"
)

func TestShares(t *testing.T) {
	for _, tt := range []struct{ places, share int }{
		{places: 1, share: 1}, {places: 2, share: 1}, {places: 3, share: 2}, {places: 4, share: 3},
		{places: 5, share: 3}, {places: 8, share: 6}, {places: 2048, share: 1536},
	} {
		s := clients.NewShares(tt.places)
		fill := func(clientID string, want int) {
			t.Helper()
			got := 0
			for s.Acquire(clientID) {
				got++
			}
			if got != want {
				t.Errorf("%s acquires %d of %d places, want %d", clientID, got, tt.places, want)
			}
		}
		fill("a", tt.share)
		s.Release("a")
		fill("a", 1)
		for i := 0; s.InUse() < tt.places; i++ {
			if !s.Acquire(fmt.Sprint("other-", i)) {
				t.Fatalf("Acquire with %d of %d places in use = false", s.InUse(), tt.places)
			}
		}
		fill("last", 0)
	}
}

func TestSharesConcurrently(t *testing.T) {
	s := clients.NewShares(8)
	var running sync.WaitGroup
	for i := range 16 {
		running.Go(func() {
			for n := range 1000 {
				if id := fmt.Sprint(i, n%3); s.Acquire(id) {
					s.Release(id)
				}
			}
		})
	}
	running.Wait()
	if n := s.InUse(); n != 0 {
		t.Errorf("InUse() = %d, want 0", n)
	}
}
