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
		fill := func(clientID string, want int, wantErr error) {
			t.Helper()
			got, err := 0, s.Acquire(clientID)
			for ; err == nil; err = s.Acquire(clientID) {
				got++
			}
			if got != want || err != wantErr {
				t.Errorf("%s acquires %d of %d places, %v, want %d, %v", clientID, got, tt.places, err, want, wantErr)
			}
		}
		shareErr := clients.ErrShare
		if tt.share == tt.places {
			shareErr = clients.ErrFull
		}
		fill("a", tt.share, shareErr)
		s.Release("a")
		fill("a", 1, shareErr)
		for i := 0; s.InUse() < s.Max(); i++ {
			if err := s.Acquire(fmt.Sprint("other-", i)); err != nil {
				t.Fatalf("Acquire with %d of %d places in use = %v", s.InUse(), s.Max(), err)
			}
		}
		fill("last", 0, clients.ErrFull)
		if s.Max() != tt.places {
			t.Errorf("Max() = %d, want %d", s.Max(), tt.places)
		}
	}
}

func TestSharesConcurrently(t *testing.T) {
	s := clients.NewShares(8)
	var running sync.WaitGroup
	for i := range 16 {
		running.Go(func() {
			for n := range 1000 {
				if id := fmt.Sprint(i, n%3); s.Acquire(id) == nil {
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
