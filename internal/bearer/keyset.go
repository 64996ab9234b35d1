package bearer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// MaxWait is how long a token with an unknown key id may wait for a fetch of the key set.
const MaxWait = time.Second

// MinRSABits is the least size of an RSA key (RFC 7518, section 3.3), maxRSABits the most that is worth its time.
const (
	MinRSABits = 2048
	maxRSABits = 8192
)

// takeLargeRSA has the library read keys over 4,096 bits.
var takeLargeRSA = sync.OnceFunc(func() { jose.MaxRSAModulusBits = maxRSABits })

const (
	maxKeySet    = 1 << 20          // bytes of a key set's document
	fetchTimeout = 5 * time.Second  // for a whole fetch
	firstRetry   = time.Second      // after a failed first fetch; doubled after each further one
	lastRetry    = 30 * time.Second // up to this
	unknownEvery = 30 * time.Second // between fetches for unknown key ids
)

// keySet is the authorization server's public keys (RFC 7517). Only run fetches them. Requests read them, and can bring
// about one fetch in 30 s.
type keySet struct {
	fetch      func(context.Context) ([]byte, error)
	every      time.Duration // between fetches, once there is a set
	algorithms []jose.SignatureAlgorithm
	log        *slog.Logger

	keys    atomic.Pointer[[]jose.JSONWebKey] // the last good set; nil: never loaded
	fetched atomic.Int64                      // when the last good fetch was, in Unix seconds; 0: never
	fresh   atomic.Bool                       // the last fetch went well

	wanted chan chan struct{} // a fetch for an unknown key id; run closes what it receives when that fetch is done
	mu     sync.Mutex
	asked  time.Time     // when the last such fetch was asked for
	done   chan struct{} // closed when it is done

	document []byte // that keys came from; used by run alone
	failure  string // of the last fetch, "" after a good one; used by run alone
}

// newKeySet returns the key set at u, not loaded yet.
func newKeySet(u *url.URL, algorithms []jose.SignatureAlgorithm, log *slog.Logger) *keySet {
	takeLargeRSA()
	k := &keySet{algorithms: algorithms, log: log, wanted: make(chan chan struct{}, 1)}
	if u.Scheme == "file" {
		k.every = time.Second // reading a file is cheap, and a changed one should count at once
		k.fetch = func(context.Context) ([]byte, error) {
			f, err := os.Open(u.Path)
			if err != nil {
				return nil, err
			}
			defer f.Close()
			return readKeySet(f)
		}
		return k
	}
	k.every = 10 * time.Minute
	client := &http.Client{
		Timeout: fetchTimeout,
		// A redirect could lead to a host that JWKS_URL's rule would refuse.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	k.fetch = func(ctx context.Context) ([]byte, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return nil, err
		}
		response, err := client.Do(r)
		if err != nil {
			if wrapped, ok := errors.AsType[*url.Error](err); ok {
				err = wrapped.Err // without the URL, which may hold a credential
			}
			return nil, err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("status %d", response.StatusCode)
		}
		return readKeySet(response.Body)
	}
	return k
}

func readKeySet(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxKeySet+1))
	if err == nil && len(data) > maxKeySet {
		err = fmt.Errorf("more than %d bytes", maxKeySet)
	}
	return data, err
}

// run fetches the set until ctx ends: at once, again until it is first there, every k.every from then on, and when find
// asks for it.
func (k *keySet) run(ctx context.Context) {
	next, retry := time.NewTimer(0), firstRetry
	defer next.Stop()
	for {
		var done chan struct{}
		select {
		case <-ctx.Done():
			return
		case <-next.C:
		case done = <-k.wanted:
		}
		k.load(ctx)
		if done != nil {
			close(done)
		}
		if k.loaded() {
			next.Reset(k.every)
		} else {
			next.Reset(retry)
			retry = min(2*retry, lastRetry)
		}
	}
}

// load fetches the set once. A failed fetch, or one of a set without a usable key, keeps the last good set.
func (k *keySet) load(ctx context.Context) {
	document, err := k.fetch(ctx)
	if err == nil && (k.document == nil || !bytes.Equal(document, k.document)) {
		err = k.replace(document)
	}
	if k.fresh.Store(err == nil); err == nil {
		k.fetched.Store(time.Now().Unix())
		k.failure = ""
		return
	}
	if k.failure != err.Error() && ctx.Err() == nil { // not each time: a file is read every second
		k.log.Error("fetching key set failed", "cause", err.Error(), "loaded", k.loaded())
	}
	k.failure = err.Error()
}

// replace makes the document's keys the set's.
func (k *keySet) replace(document []byte) error {
	keys, skipped, err := parseKeySet(document, k.algorithms)
	if err != nil {
		return err
	}
	k.document = document
	k.keys.Store(&keys)
	k.log.Info("key set loaded", "keys", len(keys), "skipped", skipped)
	return nil
}

// maxSkipped is how many of the keys that are skipped have their reason in the log.
const maxSkipped = 100

// parseKeySet returns the keys of a set that may verify one of the algorithms. Others, and what does not parse, are
// skipped, with their key ids and why. A set where nothing is left is an error.
func parseKeySet(document []byte, algorithms []jose.SignatureAlgorithm) (
	keys []jose.JSONWebKey, skipped []string, err error,
) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(document, &set); err != nil {
		return nil, nil, errors.New("not a JSON Web Key Set")
	}
	skipped = []string{} // the log says [], not null
	for _, data := range set.Keys {
		members, err := parseObject(data)
		var key jose.JSONWebKey
		if err == nil {
			key, err = parseKey(data, members, algorithms)
		}
		if err == nil {
			keys = append(keys, key)
		} else if len(skipped) < maxSkipped {
			skipped = append(skipped, fmt.Sprintf("%+q: %v", cut(members.text("kid")), err))
		}
	}
	if len(keys) == 0 {
		return nil, nil, errors.New(strings.Join(append([]string{"no usable key in the set"}, skipped...), "; "))
	}
	return keys, skipped, nil
}

// parseKey returns a key, or why it is skipped.
func parseKey(data []byte, members members, algorithms []jose.SignatureAlgorithm) (key jose.JSONWebKey, err error) {
	_, restricted := members["key_ops"]
	fits := func(alg jose.SignatureAlgorithm) bool { return Fits(key, alg) }
	switch err := key.UnmarshalJSON(data); {
	case err != nil:
		return key, fmt.Errorf("%+q", cut(strings.TrimPrefix(err.Error(), "go-jose/go-jose: ")))
	case restricted && !slices.Contains(members.texts("key_ops"), "verify"): // RFC 7517, section 4.3
		return key, errors.New("key_ops lacks verify")
	case key.Use != "" && key.Use != "sig":
		return key, errors.New("use is not sig")
	case !key.IsPublic():
		return key, errors.New("not a public key")
	case !slices.ContainsFunc(algorithms, fits):
		return key, errors.New("its type, size and alg fit none of JWT_ALGORITHMS")
	}
	return key, nil
}

// Fits tells whether key may verify alg: by its own alg and use, and by its type. No private or symmetric key does.
func Fits(key jose.JSONWebKey, alg jose.SignatureAlgorithm) bool {
	if key.Algorithm != "" && key.Algorithm != string(alg) || key.Use != "" && key.Use != "sig" {
		return false
	}
	switch public := key.Key.(type) {
	case *rsa.PublicKey:
		isRSA := strings.HasPrefix(string(alg), "RS") || strings.HasPrefix(string(alg), "PS")
		return isRSA && public.N.BitLen() >= MinRSABits
	case *ecdsa.PublicKey: // RFC 7518, section 3.4: each algorithm has its curve
		curves := map[jose.SignatureAlgorithm]int{jose.ES256: 256, jose.ES384: 384, jose.ES512: 521}
		return curves[alg] == public.Params().BitSize
	case ed25519.PublicKey:
		return alg == jose.EdDSA
	}
	return false
}

func (k *keySet) loaded() bool { return k.keys.Load() != nil }

// find returns the keys that may have signed a token with this key id and algorithm: those of that id, or for "" the
// one key that fits. An id that the set does not have may have the set fetched again. The error is ErrNoKeys, or says
// that no key fits.
func (k *keySet) find(kid, alg string) ([]jose.JSONWebKey, error) {
	keys := k.keys.Load()
	if keys == nil {
		return nil, ErrNoKeys
	}
	hasID := func(key jose.JSONWebKey) bool { return key.KeyID == kid }
	if kid != "" && !slices.ContainsFunc(*keys, hasID) {
		k.refresh()
		keys = k.keys.Load()
	}
	var found []jose.JSONWebKey
	for _, key := range *keys {
		if (kid == "" || hasID(key)) && Fits(key, jose.SignatureAlgorithm(alg)) {
			found = append(found, key)
		}
	}
	if len(found) == 0 || kid == "" && len(found) > 1 {
		return nil, errors.New("no key of the set for its kid and alg")
	}
	return found, nil
}

// refresh asks for a fetch, at most one in 30 s for the whole process, and waits until the last one asked for is done,
// or MaxWait after it was asked for.
func (k *keySet) refresh() {
	k.mu.Lock()
	if time.Since(k.asked) >= unknownEvery {
		k.asked, k.done = time.Now(), make(chan struct{})
		select {
		case k.wanted <- k.done:
		default: // run has ended
		}
	}
	done, wait := k.done, time.Until(k.asked.Add(MaxWait))
	k.mu.Unlock()
	select {
	case <-done:
	case <-time.After(wait):
	}
}
