package bearer

import "net/http"

// SetTransport makes fetches of the key set use a transport without a network. It must be called before Run.
func (v *Verifier) SetTransport(t http.RoundTripper) { v.keys.client.Transport = t }

// SetCacheLimit sets how many tokens are cached. It must be called before Verify.
func (v *Verifier) SetCacheLimit(tokens int) { v.cache.limit = tokens }

// CachedTokens returns the number of tokens in the cache.
func (v *Verifier) CachedTokens() int {
	v.cache.mu.RLock()
	defer v.cache.mu.RUnlock()
	return len(v.cache.tokens)
}
