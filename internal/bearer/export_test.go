package bearer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// What the tests ask of a Verifier beyond its API.

// MaxRemembered is how many tokens a Verifier remembers.
const MaxRemembered = maxRemembered

// SetNow makes the Verifier check dates by this clock. No Verify may be running.
func (v *Verifier) SetNow(now func() time.Time) { v.now = now }

// SetEvery is the time between fetches of the key set. It must be set before Run.
func (v *Verifier) SetEvery(every time.Duration) { v.keys.every = every }

// SetFetch makes Run get the key set's document from fetch. It must be set before Run.
func (v *Verifier) SetFetch(fetch func(context.Context) ([]byte, error)) { v.keys.fetch = fetch }

// Fetch gets the key set's document as Run does.
func (v *Verifier) Fetch(ctx context.Context) ([]byte, error) { return v.keys.fetch(ctx) }

// SetKeys stands in for Run: these are the keys, and no unknown key id asks for others or waits.
func (v *Verifier) SetKeys(keys ...jose.JSONWebKey) {
	v.keys.keys.Store(&keys)
	v.keys.asked, v.keys.done = time.Now().AddDate(100, 0, 0), make(chan struct{})
	close(v.keys.done)
}

// KeyCount is the number of keys in the set.
func (v *Verifier) KeyCount() int { return len(*v.keys.keys.Load()) }

// AskAgain lets the next unknown key id have the set fetched, as if 30 s had gone by.
func (v *Verifier) AskAgain() {
	v.keys.mu.Lock()
	defer v.keys.mu.Unlock()
	v.keys.asked = v.keys.asked.Add(-unknownEvery)
}

// VerifyNow verifies a token without looking whether it is remembered.
func (v *Verifier) VerifyNow(token string) error {
	_, err := v.verifyNow(token, nil)
	return err
}

// RememberedCount is the number of tokens that are remembered.
func (v *Verifier) RememberedCount() int {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return len(v.remembered)
}

// FillRemembered remembers made-up tokens until there is no room.
func (v *Verifier) FillRemembered() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := uint64(0); len(v.remembered) < maxRemembered; i++ {
		v.remembered[sha256.Sum256(binary.LittleEndian.AppendUint64(nil, i))] = rememberedToken{}
	}
}
