package bearer_test

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/keytool"
	"authsession/internal/testkit"
)

// clockedSet is a Verifier that runs by synctest's clock, over a set that is fetched without HTTP.
type clockedSet struct {
	*verifier
	begun time.Time

	mu       sync.Mutex
	fetches  []time.Duration // when, since begun
	document string          // what a fetch gets; "": an error
	takes    time.Duration   // how long a fetch takes
}

func newClockedSet(keySet *url.URL, document string) *clockedSet {
	c := &clockedSet{verifier: newVerifier(config(keySet)), begun: time.Now(), document: document}
	c.SetFetch(func(context.Context) ([]byte, error) {
		c.mu.Lock()
		c.fetches = append(c.fetches, time.Since(c.begun))
		takes := c.takes
		c.mu.Unlock()
		time.Sleep(takes)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.document == "" {
			return nil, errors.New("no answer")
		}
		return []byte(c.document), nil
	})
	return c
}

// serve changes what the fetches to come get, and how many seconds they take.
func (c *clockedSet) serve(document string, seconds float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.document, c.takes = document, inSeconds(seconds)
}

// until waits for so long after the start.
func (c *clockedSet) until(seconds float64) {
	time.Sleep(time.Until(c.begun.Add(inSeconds(seconds))))
	synctest.Wait()
}

func (c *clockedSet) wantFetches(t *testing.T, seconds ...float64) {
	t.Helper()
	var want []time.Duration
	for _, s := range seconds {
		want = append(want, inSeconds(s))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.fetches, want) {
		t.Errorf("fetches after %s, want %s", c.fetches, want)
	}
}

// wantAfter checks what Verify says of a token by k, and after how long.
func (c *clockedSet) wantAfter(t *testing.T, k keytool.Key, why string, seconds float64) {
	t.Helper()
	token, start := sign(t, k), time.Now()
	_, err := c.Verify(token)
	if d, want := time.Since(start), inSeconds(seconds); textOf(err) != why || d != want {
		t.Errorf("%s: Verify of a token by key %q = %v after %s, want %q after %s",
			start.Sub(c.begun), k.ID, err, d, why, want)
	}
}

func inSeconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func TestKeySetSchedule(t *testing.T) {
	ec := testkit.EC()
	document := keySetJSON(t, ec.Public())
	t.Run("https", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newClockedSet(&url.URL{Scheme: "https"}, "")
			c.start(t)
			c.until(120)
			c.wantFetches(t, 0, 1, 3, 7, 15, 31, 61, 91)
			c.wantAfter(t, ec, bearer.ErrNoKeys.Error(), 0)
			c.serve(document, 0)
			c.until(1321)
			c.wantFetches(t, 0, 1, 3, 7, 15, 31, 61, 91, 121, 721, 1321)
			lastGood := time.Now().Unix()
			c.serve("", 0)
			c.until(3000)
			c.wantFetches(t, 0, 1, 3, 7, 15, 31, 61, 91, 121, 721, 1321, 1921, 2521)
			c.wantAfter(t, ec, accepted, 0)
			if s := c.Stats(); s.KeySetFresh || s.KeySetFetched != lastGood {
				t.Errorf("Stats() = %+v, want a set that was fetched at %d and is not fresh", s, lastGood)
			}
			c.serve(document, 0)
			c.until(3121)
			// A failure that lasts is logged once.
			if n := strings.Count(c.log.String(), "fetching key set failed"); n != 2 {
				t.Errorf("%d log lines of failed fetches, want one of each time the key server was away", n)
			}
			if s := c.Stats(); !s.KeySetFresh || s.KeySetFetched != time.Now().Unix() {
				t.Errorf("Stats() = %+v, want a fresh set of %d", s, time.Now().Unix())
			}
		})
	})
	t.Run("file", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newClockedSet(&url.URL{Scheme: "file"}, document)
			c.start(t)
			c.until(3)
			c.wantFetches(t, 0, 1, 2, 3)
			// The same file again changes nothing, and a remembered token stays so.
			token := sign(t, ec)
			c.accept(t, token)
			c.until(6)
			c.accept(t, token)
			c.wantStats(t, 1, 3, 0)
		})
	})
}

// An unknown kid has the set fetched at most once in 30 s, and waits for it 1 s at most after it was asked for.
func TestKeySetUnknownKidSchedule(t *testing.T) {
	ec, late, unknown := testkit.EC(), newES256(t, "late"), newES256(t, "unknown")
	before, after := keySetJSON(t, ec.Public()), keySetJSON(t, ec.Public(), late.Public())
	synctest.Test(t, func(t *testing.T) {
		c := newClockedSet(&url.URL{Scheme: "https"}, before)
		c.start(t)
		c.until(1)
		c.serve(before, 5)
		var callers sync.WaitGroup
		callers.Go(func() { c.wantAfter(t, unknown, noKey, 1) })
		c.until(1.4)
		callers.Go(func() { c.wantAfter(t, unknown, noKey, 0.6) })
		callers.Go(func() { c.wantAfter(t, late, noKey, 0.6) })
		callers.Go(func() { c.wantAfter(t, ec, accepted, 0) })
		callers.Wait()
		for second := 2.0; second < 31; second++ {
			c.until(second)
			c.wantAfter(t, unknown, noKey, 0)
			c.wantAfter(t, ec, accepted, 0)
		}
		c.until(30.999)
		c.wantAfter(t, late, noKey, 0)
		c.wantFetches(t, 0, 1)

		c.serve(after, 0.3)
		c.until(31)
		c.wantAfter(t, late, accepted, 0.3)
		c.wantAfter(t, unknown, noKey, 0)
		c.wantFetches(t, 0, 1, 31)
		// The next one of its own is 10 minutes after that.
		c.until(640)
		c.wantFetches(t, 0, 1, 31, 631.3)
	})
}

// A fetch that is late for the first caller is there for the next.
func TestKeySetLateFetch(t *testing.T) {
	ec, late := testkit.EC(), newES256(t, "late")
	before, after := keySetJSON(t, ec.Public()), keySetJSON(t, ec.Public(), late.Public())
	synctest.Test(t, func(t *testing.T) {
		c := newClockedSet(&url.URL{Scheme: "https"}, before)
		c.start(t)
		c.until(10)
		c.serve(after, 3)
		c.wantAfter(t, late, noKey, 1)
		c.until(13)
		c.wantAfter(t, late, accepted, 0)
		c.wantFetches(t, 0, 10)
	})
}

// A caller may come while the set is fetched anyway: its own fetch is the next.
func TestKeySetUnknownKidDuringFetch(t *testing.T) {
	ec, late := testkit.EC(), newES256(t, "late")
	before, after := keySetJSON(t, ec.Public()), keySetJSON(t, ec.Public(), late.Public())
	synctest.Test(t, func(t *testing.T) {
		c := newClockedSet(&url.URL{Scheme: "https"}, before)
		c.start(t)
		c.until(599)
		c.serve(before, 0.5)
		c.until(600.2)
		var caller sync.WaitGroup
		caller.Go(func() { c.wantAfter(t, late, accepted, 0.8) })
		c.until(600.5) // that fetch got the old set
		c.serve(after, 0.5)
		caller.Wait()
		c.wantFetches(t, 0, 600, 600.5)
	})
}

func TestKeySetOneFetchForAll(t *testing.T) {
	ec, late := testkit.EC(), newES256(t, "late")
	before, after := keySetJSON(t, ec.Public()), keySetJSON(t, ec.Public(), late.Public())
	synctest.Test(t, func(t *testing.T) {
		c := newClockedSet(&url.URL{Scheme: "https"}, before)
		c.start(t)
		c.until(1)
		c.serve(after, 0.9)
		var callers sync.WaitGroup
		for range 20 {
			callers.Go(func() { c.wantAfter(t, late, accepted, 0.9) })
		}
		callers.Wait()
		c.wantFetches(t, 0, 1)
	})
}

// Nobody waits for a Verifier that has ended.
func TestKeySetAfterRun(t *testing.T) {
	ec, late := testkit.EC(), newES256(t, "late")
	document := keySetJSON(t, ec.Public())
	synctest.Test(t, func(t *testing.T) {
		c := newClockedSet(&url.URL{Scheme: "https"}, document)
		ctx, stop := context.WithCancel(t.Context())
		go c.Run(ctx)
		synctest.Wait()
		stop()
		synctest.Wait()
		c.wantAfter(t, ec, accepted, 0)
		for range 3 { // each a turn of 30 s, of which none is ever served
			c.wantAfter(t, late, noKey, 1)
			time.Sleep(30 * time.Second)
		}
		c.wantFetches(t, 0)
	})
}
