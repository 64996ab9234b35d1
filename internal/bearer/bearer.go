// Package bearer verifies OAuth 2.0 access tokens and returns the client ID.
//
// A valid token is a JWT in compact form (RFC 7515, RFC 7519) with a signature by a key of the authorization server's
// key set. Its header and claims follow RFC 8725 and Config. A token can cause no request but a fetch of that key set,
// and unknown key IDs cause at most one fetch in 30 s. Verified tokens are cached, because clients send one token for
// minutes and its signature costs more than the rest of a request.
package bearer

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Scope is the scope that a token needs to create sessions.
const Scope = "api:user.write"

const (
	maxTokenBytes = 8 << 10
	maxCached     = 10_000 // tokens
)

// Algorithms are the signature algorithms that Config.Algorithms may list, all asymmetric.
var Algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// ParseAlgorithm returns EdDSA for Ed25519, its new name (RFC 9864, section 2.2), and any other name as it is. It
// reports whether the result is one of Algorithms.
func ParseAlgorithm(name string) (alg jose.SignatureAlgorithm, known bool) {
	if alg = jose.SignatureAlgorithm(name); alg == "Ed25519" {
		alg = jose.EdDSA
	}
	return alg, slices.Contains(Algorithms, alg)
}

// ed25519Key verifies EdDSA signatures of tokens whose alg is EdDSA or Ed25519. go-jose knows only the first name.
type ed25519Key ed25519.PublicKey

// VerifyPayload implements jose.OpaqueVerifier.
func (k ed25519Key) VerifyPayload(payload, signature []byte, _ jose.SignatureAlgorithm) error {
	return ed25519.VerifyWithOptions(ed25519.PublicKey(k), payload, signature, &ed25519.Options{})
}

// Config holds the rules for valid tokens.
type Config struct {
	JWKSURL      *url.URL                  // of the key set: https, http to a loopback host, or file
	Algorithms   []jose.SignatureAlgorithm // allowed ones, a non-empty subset of the package's Algorithms
	Issuer       string                    // required iss; "" allows any
	Audience     string                    // required member of aud; "" allows any
	ClientClaims []string                  // claims with the client ID: the first non-empty string counts
	ScopeClaims  []string                  // claims with scopes: Scope may be in any of them
	MaxLifetime  time.Duration             // maximum time left until exp
	RequireATJWT bool                      // require typ at+jwt (RFC 9068, section 4)
}

// Token holds what the service needs from a valid token.
type Token struct {
	ClientID string // 1 to 128 bytes
	HasScope bool   // the token has Scope
	ID       string // jti for the log, cut to 64 bytes; "" if the token has none
	KeyID    string // of the key that signed the token; "" if that key has none
}

// ErrNoKeys means that the key set has never been loaded, so no token can be verified.
var ErrNoKeys = errors.New("key set not loaded yet")

// Verifier verifies tokens. It is safe for concurrent use.
type Verifier struct {
	config Config
	keys   *keySet
	cache  tokenCache
}

// New returns a Verifier whose Verify returns ErrNoKeys until Run has loaded the key set.
func New(c Config, log *slog.Logger) *Verifier {
	return &Verifier{config: c, keys: newKeySet(c, log),
		cache: tokenCache{limit: maxCached, tokens: map[[sha256.Size]byte]verifiedToken{}}}
}

// Run loads the key set and keeps it up to date until ctx is done.
func (v *Verifier) Run(ctx context.Context) { v.keys.run(ctx) }

// Ready reports whether the key set has been loaded.
func (v *Verifier) Ready() bool { return v.keys.current.Load() != nil }

// WaitReady waits until the key set has been loaded. It returns ctx's error if ctx is done first.
func (v *Verifier) WaitReady(ctx context.Context) error {
	select {
	case <-v.keys.loaded:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// KeySetLastSuccess returns the Unix time of the last successful fetch of the key set in seconds; 0: none yet.
func (v *Verifier) KeySetLastSuccess() int64 { return v.keys.lastSuccess.Load() }

// Verify verifies a token. It waits up to MaxWait for a fetch of the key set if the token's key ID is unknown.
//
// certificate has all values of the header in which the gateway passes its client's certificate. A token that is bound
// to a certificate by its claim cnf is valid only together with that certificate.
//
// The error is ErrNoKeys or the reason why the token is not valid. A reason never quotes the token.
func (v *Verifier) Verify(token string, certificate ...string) (Token, error) {
	keys := v.keys.current.Load()
	hash := sha256.Sum256(append(make([]byte, 0, 1024), token...)) // a usual token is copied to the stack
	verified, cached := v.cache.get(hash)
	if !cached || verified.keys != keys || expired(verified.exp, unixSeconds(time.Now())) {
		var err error
		if verified, err = v.verify(token); err != nil {
			return Token{}, err
		}
		verified.keys = keys
		v.cache.put(hash, verified)
	}
	if err := verified.checkCertificate(certificate); err != nil {
		return Token{}, err
	}
	return verified.Token, nil
}

// verify checks a token's form, header, signature and claims.
func (v *Verifier) verify(token string) (verifiedToken, error) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
	if len(token) > maxTokenBytes || strings.Count(token, ".") != 2 || strings.Trim(token, alphabet) != "" {
		return verifiedToken{}, errors.New("not a compact JWT") // go-jose would skip line ends
	}
	kid, err := v.checkHeader(token)
	if err != nil {
		return verifiedToken{}, err
	}
	names := v.config.Algorithms // as a token's alg gives them
	if slices.Contains(names, jose.EdDSA) {
		names = append(slices.Clip(names), "Ed25519")
	}
	signed, err := jose.ParseSignedCompact(token, names)
	if err != nil { // not wrapped, because it quotes the token
		return verifiedToken{}, errors.New("malformed, or signed with an algorithm that is not allowed")
	}
	alg, _ := ParseAlgorithm(signed.Signatures[0].Header.Algorithm)
	keys, err := v.keys.find(kid, alg)
	if err != nil {
		return verifiedToken{}, err
	}
	for _, key := range keys {
		public := key.Key
		if ed, ok := public.(ed25519.PublicKey); ok {
			public = ed25519Key(ed)
		}
		payload, err := signed.Verify(public)
		if err != nil {
			continue
		}
		verified, err := v.checkClaims(payload)
		verified.KeyID = key.KeyID
		return verified, err
	}
	return verifiedToken{}, errors.New("bad signature")
}

// checkHeader checks what go-jose does not: it accepts crit with b64, ignores zip and typ, and takes null for an absent
// member. It returns the key ID, or "" if there is none. Keys in the header (jwk, jku, x5c, x5u) are not used.
func (v *Verifier) checkHeader(token string) (kid string, err error) {
	encoded, _, _ := strings.Cut(token, ".")
	data, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return "", errors.New("header is not base64url")
	}
	header, err := parseObject(data)
	if err != nil {
		return "", fmt.Errorf("header %w", err)
	}
	// RFC 7515, section 4.1.11; RFC 7797; RFC 7516, section 4.1.3.
	for _, name := range []string{"crit", "b64", "zip"} {
		if header[name] != nil {
			return "", fmt.Errorf("header has %s", name)
		}
	}
	typ := header.text("typ")
	isType := func(name string) bool { // RFC 7515, section 4.1.9; ToLower would make an i of U+0130
		return strings.EqualFold(typ, name) || strings.EqualFold(typ, "application/"+name)
	}
	switch kid := header["kid"]; {
	case !isType("at+jwt") && (v.config.RequireATJWT || header["typ"] != nil && !isType("jwt")):
		return "", errors.New("typ is not of an access token")
	case kid != nil && kid[0] != '"':
		return "", errors.New("kid is not a string")
	}
	return header.text("kid"), nil
}

// verifiedToken is a token whose signature and claims are good. It stays valid until it expires or the key set changes,
// because all other checks give the same result later.
type verifiedToken struct {
	Token
	exp        float64 // Unix seconds
	thumbprint string  // of the certificate that the token is bound to (cnf); "" if it is not bound
	keys       *jose.JSONWebKeySet
}

// tokenCache holds up to limit verified tokens, by the hash of their text. It is safe for concurrent use.
type tokenCache struct {
	limit  int
	mu     sync.RWMutex
	tokens map[[sha256.Size]byte]verifiedToken
}

func (c *tokenCache) get(hash [sha256.Size]byte) (token verifiedToken, found bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	token, found = c.tokens[hash]
	return token, found
}

// put adds a token. A full cache begins again.
func (c *tokenCache) put(hash [sha256.Size]byte, token verifiedToken) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.tokens) >= c.limit {
		clear(c.tokens)
	}
	c.tokens[hash] = token
}
