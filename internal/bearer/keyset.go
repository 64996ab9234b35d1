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
	"maps"
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

// MaxWait is how long Verify waits for a fetch of the key set if a token's key ID is unknown.
const MaxWait = time.Second

// MinRSABits and MaxRSABits limit the size of an RSA key (RFC 7518, section 3.3).
const MinRSABits, MaxRSABits = 2048, 8192

const (
	httpInterval    = 10 * time.Minute // between fetches of a loaded key set
	fileInterval    = time.Second      // the same for a file, which is cheap to read
	firstRetry      = time.Second      // after a failed first fetch; doubled after each further failure
	maxRetry        = 30 * time.Second
	requestInterval = 30 * time.Second // minimum between fetches for unknown key IDs
	fetchTimeout    = 5 * time.Second  // for a whole fetch
	maxKeySetBytes  = 1 << 20
	maxSkipped      = 100 // keys in one log line
)

// raiseRSALimit makes go-jose parse RSA keys over 4,096 bits. It must run before the first key is parsed.
var raiseRSALimit = sync.OnceFunc(func() { jose.MaxRSAModulusBits = MaxRSABits })

// keySet is the authorization server's set of public keys (RFC 7517). Only run fetches it.
// It is not a library's cache, because those fetch the set for every forged key ID or drop a good set.
type keySet struct {
	config Config
	client *http.Client
	log    *slog.Logger

	current     atomic.Pointer[jose.JSONWebKeySet] // the last good set; nil until there is one
	loaded      chan struct{}                      // closed when the first set has been loaded
	lastSuccess atomic.Int64                       // time of the last successful fetch in Unix seconds; 0: none yet

	requests  chan func()   // fetches for unknown key IDs; run calls the function when its fetch is done
	mu        sync.Mutex    // guards requested and done
	requested time.Time     // when the last such fetch was requested
	done      chan struct{} // closed when that fetch is done, or after MaxWait

	// Only run uses these.
	document []byte // text of the current set; nil until there is one
	failure  string // error of the last fetch; "" after a successful one
}

// newKeySet returns the key set at c.JWKSURL, which is not loaded yet.
func newKeySet(c Config, log *slog.Logger) *keySet {
	raiseRSALimit()
	client := &http.Client{
		Timeout: fetchTimeout,
		// A redirect is not followed, because it may lead to a host that JWKS_URL may not name.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return &keySet{
		config:   c,
		client:   client,
		log:      log,
		loaded:   make(chan struct{}),
		requests: make(chan func(), 1),
	}
}

// run fetches the set until ctx is done: at once, after a failure again until there is a set, then at intervals, and
// whenever refresh requests it.
func (k *keySet) run(ctx context.Context) {
	interval, retry := httpInterval, firstRetry
	if k.config.JWKSURL.Scheme == "file" {
		interval = fileInterval
	}
	timer := time.NewTimer(0)
	for {
		done := func() {}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case done = <-k.requests:
		}
		k.load(ctx)
		done()
		if k.current.Load() != nil {
			timer.Reset(interval)
		} else {
			timer.Reset(retry)
			retry = min(2*retry, maxRetry)
		}
	}
}

// load fetches the set once. If the fetch fails or the new set has no usable key, the last good set stays.
func (k *keySet) load(ctx context.Context) {
	document, err := k.fetch(ctx)
	if err == nil && (k.document == nil || !bytes.Equal(document, k.document)) {
		err = k.replace(document)
	}
	if err == nil {
		k.failure = ""
		if k.lastSuccess.Swap(time.Now().Unix()) == 0 {
			close(k.loaded)
		}
		return
	}
	if k.failure != err.Error() && ctx.Err() == nil { // once for all, because a file is read every second
		k.log.Error("fetching key set failed", "cause", err.Error(), "loaded", k.document != nil)
	}
	k.failure = err.Error()
}

// fetch returns the text of the set.
func (k *keySet) fetch(ctx context.Context) ([]byte, error) {
	if k.config.JWKSURL.Scheme == "file" {
		return os.ReadFile(k.config.JWKSURL.Path)
	}
	response, err := k.client.Do((&http.Request{URL: k.config.JWKSURL}).WithContext(ctx))
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err // without the URL, which may contain a password
		}
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", response.StatusCode)
	}
	document, err := io.ReadAll(io.LimitReader(response.Body, maxKeySetBytes+1))
	if err == nil && len(document) > maxKeySetBytes {
		err = fmt.Errorf("more than %d bytes", maxKeySetBytes)
	}
	return document, err
}

// find returns the keys that may have signed a token with this key ID and algorithm: those with that ID, or for "" the
// only key that fits the algorithm. It fetches the set for an unknown ID, within refresh's limits. The error is
// ErrNoKeys or says that there is no such key.
func (k *keySet) find(kid string, alg jose.SignatureAlgorithm) ([]jose.JSONWebKey, error) {
	set := k.current.Load()
	if set == nil {
		return nil, ErrNoKeys
	}
	if kid != "" && len(set.Key(kid)) == 0 {
		k.refresh()
		set = k.current.Load()
	}
	found := set.Key(kid)
	if kid == "" {
		found = slices.Clone(set.Keys)
	}
	found = slices.DeleteFunc(found, func(key jose.JSONWebKey) bool { return !Fits(key, alg) })
	if len(found) == 0 || kid == "" && len(found) > 1 {
		return nil, errors.New("no key of the set for its kid and alg")
	}
	return found, nil
}

// refresh requests a fetch from run, unless the last request is less than 30 s old. It then waits until the fetch that
// was requested last is done, or until MaxWait after its request.
func (k *keySet) refresh() {
	k.mu.Lock()
	if time.Since(k.requested) >= requestInterval {
		done := make(chan struct{})
		finish := sync.OnceFunc(func() { close(done) })
		time.AfterFunc(MaxWait, finish)
		k.requested, k.done = time.Now(), done
		select {
		case k.requests <- finish:
		default: // run has ended
		}
	}
	done := k.done
	k.mu.Unlock()
	<-done
}

// replace makes the keys in document the current set, without those that may verify none of the algorithms. It returns
// an error if no key is left.
func (k *keySet) replace(document []byte) error {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(document, &set); err != nil {
		return errors.New("not a JSON Web Key Set")
	}
	var keys []jose.JSONWebKey
	skipped := []string{} // logged as [], not null
	for _, data := range set.Keys {
		key, id, err := k.parseKey(data)
		if err == nil {
			keys = append(keys, key)
		} else if len(skipped) < maxSkipped {
			skipped = append(skipped, fmt.Sprintf("%+q: %v", cut(id), err))
		}
	}
	if len(keys) == 0 {
		return errors.New(strings.Join(append([]string{"no usable key in the set"}, skipped...), "; "))
	}
	k.document = document
	k.current.Store(&jose.JSONWebKeySet{Keys: keys})
	k.log.Info("key set loaded", "keys", len(keys), "skipped", skipped)
	return nil
}

// parseKey returns a key and its ID. The error says why the key is skipped.
func (k *keySet) parseKey(data []byte) (key jose.JSONWebKey, id string, err error) {
	object, err := parseObject(data)
	id = object.text("kid")
	if err != nil {
		return key, id, err
	}
	// The certificate of a key is not read, because go-jose refuses a good key for an odd x5c, x5t, x5t#S256 or x5u.
	read := []string{"kty", "n", "e", "crv", "x", "y", "d", "k", "kid", "use", "alg", "key_ops"}
	maps.DeleteFunc(object, func(name string, value json.RawMessage) bool {
		return !slices.Contains(read, name) || string(value) == "null"
	})
	data, _ = json.Marshal(object) // no error, because parseObject has checked the values
	fits := func(alg jose.SignatureAlgorithm) bool { return Fits(key, alg) }
	switch err := key.UnmarshalJSON(data); {
	case object["d"] != nil || object["k"] != nil: // RFC 7518, section 6
		return key, id, errors.New("not a public key")
	case err != nil:
		return key, id, fmt.Errorf("%+q", cut(strings.TrimPrefix(err.Error(), "go-jose/go-jose: ")))
	case object["key_ops"] != nil && !slices.Contains(object.texts("key_ops"), "verify"): // go-jose ignores it
		return key, id, errors.New("key_ops lacks verify")
	case !slices.ContainsFunc(k.config.Algorithms, fits):
		return key, id, errors.New("its type, size, alg and use fit none of JWT_ALGORITHMS")
	}
	return key, id, nil
}

// Fits reports whether a key may verify signatures by alg, according to its type, size, alg and use. No private or
// symmetric key may.
func Fits(key jose.JSONWebKey, alg jose.SignatureAlgorithm) bool {
	if own, _ := ParseAlgorithm(key.Algorithm); own != "" && own != alg || key.Use != "" && key.Use != "sig" {
		return false
	}
	switch public := key.Key.(type) {
	case *rsa.PublicKey:
		isRSA := strings.HasPrefix(string(alg), "RS") || strings.HasPrefix(string(alg), "PS")
		return isRSA && MinRSABits <= public.N.BitLen() && public.N.BitLen() <= MaxRSABits
	case *ecdsa.PublicKey: // RFC 7518, section 3.4
		byBits := map[int]jose.SignatureAlgorithm{256: jose.ES256, 384: jose.ES384, 521: jose.ES512}
		return byBits[public.Curve.Params().BitSize] == alg
	case ed25519.PublicKey:
		return alg == jose.EdDSA
	}
	return false
}

// CheckFile reads the key set if JWKSURL is a file, and logs what Run would log of it. The error says why Run would not
// load the set. It is nil for other URLs and for no URL. Without Algorithms, a key for any algorithm counts.
func CheckFile(c Config, log *slog.Logger) error {
	if c.JWKSURL == nil || c.JWKSURL.Scheme != "file" {
		return nil
	}
	if len(c.Algorithms) == 0 { // JWT_ALGORITHMS is wrong, which is an error of its own
		c.Algorithms = Algorithms
	}
	k := newKeySet(c, log)
	document, err := k.fetch(context.Background())
	if err == nil {
		err = k.replace(document)
	}
	return err
}
