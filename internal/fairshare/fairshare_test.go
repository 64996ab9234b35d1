package fairshare

import (
	"fmt"
	"sync"
	"testing"
)

// One client gets three quarters, others the rest, and a place given back can be taken again.
func TestPlaces(t *testing.T) {
	for _, test := range []struct{ most, share int }{{1, 1}, {2, 1}, {3, 2}, {4, 3}, {5, 3}, {8, 6}, {2048, 1536}} {
		p := New(test.most)
		take := func(client string, want int) {
			t.Helper()
			n := 0
			for p.Take(client) == nil {
				n++
			}
			if n != want {
				t.Errorf("of %d places %s got %d, want %d", test.most, client, n, want)
			}
		}
		take("a", test.share)
		wantError(t, p.Take("a"), map[bool]error{true: ErrFull, false: ErrShare}[test.share == test.most])
		take("b", min(test.share, test.most-test.share))
		p.Leave("a")
		if p.Taken() >= test.most {
			t.Errorf("%d of %d places taken after one was left", p.Taken(), test.most)
		}
		take("a", 1)
		take("c", test.most-p.Taken())
		wantError(t, p.Take("d"), ErrFull)
		wantError(t, p.Take("c"), ErrFull)
		if p.Taken() != p.Most() || p.Most() != test.most {
			t.Errorf("%d of %d places taken, want all %d", p.Taken(), p.Most(), test.most)
		}
	}
}

func wantError(t *testing.T, got, want error) {
	t.Helper()
	if got != want {
		t.Errorf("Take = %v, want %v", got, want)
	}
}

// Clients without places leave nothing behind.
func TestPlacesForget(t *testing.T) {
	p := New(8)
	var running sync.WaitGroup
	for i := range 16 {
		running.Go(func() {
			for n := range 1000 {
				client := fmt.Sprint(i, n)
				if p.Take(client) == nil {
					p.Leave(client)
				}
			}
		})
	}
	running.Wait()
	if p.Taken() != 0 || len(p.by) != 0 {
		t.Errorf("%d places taken by %d clients, want none", p.Taken(), len(p.by))
	}
}
