// Package bearer tells who the bearer of a token is.
//
// A good token is a JWT in compact form (RFC 7519, 7515) that is signed by a key of the authorization server's
// published key set and whose claims pass the rules of RFC 8725 and of Config. Nothing of a token can make the service
// fetch anything but that key set, and that at most once in 30 s. A token that was found good is remembered, because
// partners use one token for minutes and its signature costs more than all the rest of a request.
package bearer

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"authsession/internal/strictjson"

	"github.com/go-jose/go-jose/v4"
)

// Scope is what a token must hold to create sessions.
const Scope = "api:user.write"

const (
	maxToken      = 8 << 10 // bytes
	maxClient     = 128     // bytes
	leeway        = 30      // seconds on exp, nbf and iat, for clocks that differ
	maxRemembered = 10_000  // tokens
)

// Algorithms are the signature algorithms that Config.Algorithms may list, all asymmetric.
var Algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// Config says which tokens are good.
type Config struct {
	JWKSURL      *url.URL                  // the key set: https, http to this machine, or file
	Algorithms   []jose.SignatureAlgorithm // of Algorithms; at least one
	Issuer       string                    // what iss must be; "" demands none
	Audience     string                    // what aud must have; "" demands none
	ClientClaims []string                  // the first that is a non-empty string names the client
	MaxLifetime  time.Duration             // from now to exp; a token with more left is refused
	AccessOnly   bool                      // typ must be at+jwt (RFC 9068, section 4)
}

// Bearer is what a good token says of its bearer.
type Bearer struct {
	Client   string // 1 to 128 bytes
	HasScope bool   // the token holds Scope
	TokenID  string // its jti, cut to 64 bytes, for the log; "": none
	KeyID    string // of the key that signed it; "": none
}

// ErrNoKeys means that the key set was never loaded, so that no token can be told good from bad.
var ErrNoKeys = errors.New("key set not loaded yet")

// Stats counts since the start.
type Stats struct {
	Remembered, Verified uint64 // good tokens: seen before, and checked whole
	Refused              uint64 // bad tokens
	KeySetFetched        int64  // when the key set was last fetched well, in Unix seconds; 0: never
	KeySetFresh          bool   // the last fetch of the key set went well
}

// Verifier checks tokens. Its methods may be called at the same time.
type Verifier struct {
	config Config
	keys   *keySet
	now    func() time.Time

	rememberedCount, verifiedCount, refusedCount atomic.Uint64

	mu         sync.RWMutex
	remembered map[[sha256.Size]byte]rememberedToken // by the token's hash
}

// rememberedToken is a token that was found good. It stays good until its exp, while the key set is the same: what else
// was checked cannot become false as time goes by. A bound one (cnf) is good with the very header alone that it came
// with, whose hash is certificate.
type rememberedToken struct {
	bearer      Bearer
	exp         float64 // Unix seconds
	bound       bool    // to a certificate
	certificate [sha256.Size]byte
	keys        *[]jose.JSONWebKey
}

// New returns a Verifier that refuses all tokens with ErrNoKeys until Run has loaded the key set.
func New(c Config, log *slog.Logger) *Verifier {
	return &Verifier{
		config:     c,
		keys:       newKeySet(c.JWKSURL, c.Algorithms, log),
		now:        time.Now,
		remembered: map[[sha256.Size]byte]rememberedToken{},
	}
}

// Run loads the key set and keeps it fresh until ctx ends.
func (v *Verifier) Run(ctx context.Context) { v.keys.run(ctx) }

// Ready tells whether the key set was ever loaded.
func (v *Verifier) Ready() bool { return v.keys.loaded() }

// Stats returns the counters as they are now.
func (v *Verifier) Stats() Stats {
	return Stats{
		Remembered:    v.rememberedCount.Load(),
		Verified:      v.verifiedCount.Load(),
		Refused:       v.refusedCount.Load(),
		KeySetFetched: v.keys.fetched.Load(),
		KeySetFresh:   v.keys.fresh.Load(),
	}
}

// Verify returns the bearer of a good token. It may wait up to MaxWait for the key set, where the token names a key
// that the set does not have. certificate is the values of the header in which the gateway passes its caller's
// certificate, in RFC 9440's form or as nginx's escaped PEM: a token that is bound to a certificate (cnf) needs exactly
// that one. The error is ErrNoKeys, or says why the token is not good without quoting it.
func (v *Verifier) Verify(token string, certificate ...string) (Bearer, error) {
	token = token[:min(len(token), maxToken+1)] // hash no more of one that is too long, which verifyNow refuses
	keys := v.keys.keys.Load()
	hash := sha256.Sum256(append(make([]byte, 0, 1024), token...)) // a usual token is not copied to the heap
	v.mu.RLock()
	known, found := v.remembered[hash]
	v.mu.RUnlock()
	if found && known.keys == keys && unixSeconds(v.now()) < known.exp+leeway &&
		(!known.bound || len(certificate) == 1 && hashCertificate(certificate[0]) == known.certificate) {
		v.rememberedCount.Add(1)
		return known.bearer, nil
	}
	good, err := v.verifyNow(token, certificate)
	if err != nil {
		if err != ErrNoKeys {
			v.refusedCount.Add(1)
		}
		return Bearer{}, err
	}
	v.verifiedCount.Add(1)
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.remembered) >= maxRemembered && !found {
		for other := range v.remembered { // any one makes room
			delete(v.remembered, other)
			break
		}
	}
	good.keys = keys
	v.remembered[hash] = good
	return good.bearer, nil
}

// verifyNow checks form, header, signature, claims, and the certificate of a bound token.
func (v *Verifier) verifyNow(token string, certificate []string) (good rememberedToken, err error) {
	if !wellFormed(token) {
		return good, errors.New("not a compact JWT")
	}
	kid, err := v.checkHeader(token)
	if err != nil {
		return good, err
	}
	// The library's errors quote the token, so they are not passed on.
	signed, err := jose.ParseSignedCompact(token, v.config.Algorithms)
	if err != nil {
		return good, errors.New("malformed, or signed with an algorithm that is not allowed")
	}
	keys, err := v.keys.find(kid, signed.Signatures[0].Header.Algorithm)
	if err != nil {
		return good, err
	}
	for _, key := range keys {
		payload, err := signed.Verify(key.Key)
		if err != nil {
			continue
		}
		claims, err := parseObject(payload)
		if err != nil {
			return good, fmt.Errorf("payload %w", err)
		}
		good.bearer, good.exp, err = v.checkClaims(claims)
		if cnf, given := claims["cnf"]; given && err == nil {
			good.bound = true
			good.certificate, err = checkCertificate(cnf, certificate)
		}
		good.bearer.KeyID = key.KeyID
		return good, err
	}
	return good, errors.New("bad signature")
}

// wellFormed takes three parts of base64url with dots between, 8 KiB at most.
func wellFormed(token string) bool {
	for i := range min(len(token), maxToken) {
		if !tokenCharacters[token[i]] {
			return false
		}
	}
	return len(token) <= maxToken && strings.Count(token, ".") == 2
}

var tokenCharacters = func() (set [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.") {
		set[c] = true
	}
	return set
}()

// members are a JSON object's members, with their values as they stand.
type members map[string][]byte

func parseObject(data []byte) (members, error) {
	m := members{}
	err := strictjson.Object(data, func(name, value []byte) { m[string(name)] = value })
	return m, err
}

// text returns a member that is a string; "" stands for one that is absent or is not a string.
func (m members) text(name string) string {
	text, _ := strictjson.Text(m[name])
	return text
}

// texts returns a member that is an array of nothing but strings, and nil for any other.
func (m members) texts(name string) []string {
	texts, _ := strictjson.Texts(m[name])
	return texts
}

// date returns a member in seconds since 1970 (RFC 7519, section 2). An error means that it is not a number.
func (m members) date(name string) (seconds float64, given bool, err error) {
	value, given := m[name]
	if !given {
		return 0, false, nil
	}
	seconds, err = strconv.ParseFloat(string(value), 64) // of JSON values only a number parses
	if err != nil {
		return 0, true, fmt.Errorf("%s is not a number", name)
	}
	return seconds, true, nil
}

// checkHeader checks what the signature library would let pass, and returns the key id, "" where there is none. Keys in
// the header (jwk, jku, x5c, x5u) are not looked at.
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
		if _, given := header[name]; given {
			return "", fmt.Errorf("header has %s", name)
		}
	}
	types := []string{"at+jwt", "application/at+jwt", "JWT", "application/JWT"}
	if v.config.AccessOnly {
		types = types[:2]
	}
	if _, given := header["typ"]; given || v.config.AccessOnly { // RFC 9068, section 4; RFC 7515, section 4.1.9
		typ := header.text("typ")
		fold := func(t string) bool { return strings.EqualFold(t, typ) } // ToLower would make an i of U+0130
		if !slices.ContainsFunc(types, fold) {
			return "", errors.New("typ is not of an access token")
		}
	}
	if value, given := header["kid"]; given && value[0] != '"' {
		return "", errors.New("kid is not a string")
	}
	return header.text("kid"), nil
}

// checkClaims checks the claims of a token whose signature is good.
func (v *Verifier) checkClaims(claims members) (bearer Bearer, exp float64, err error) {
	now := unixSeconds(v.now())
	exp, given, err := claims.date("exp")
	switch {
	case err != nil:
		return bearer, 0, err
	case !given:
		return bearer, 0, errors.New("no exp")
	case now >= exp+leeway: // RFC 7519, section 4.1.4: before it, not at it
		return bearer, 0, errors.New("expired")
	case exp-now > v.config.MaxLifetime.Seconds():
		return bearer, 0, errors.New("exp is further away than JWT_MAX_LIFETIME")
	}
	for _, name := range []string{"nbf", "iat"} {
		date, given, err := claims.date(name)
		if err != nil {
			return bearer, 0, err
		}
		if given && date > now+leeway {
			return bearer, 0, fmt.Errorf("%s is in the future", name)
		}
	}
	if v.config.Issuer != "" && claims.text("iss") != v.config.Issuer {
		return bearer, 0, errors.New("iss is not JWT_ISSUER")
	}
	if want := v.config.Audience; want != "" && claims.text("aud") != want && !slices.Contains(claims.texts("aud"), want) {
		return bearer, 0, errors.New("aud does not have JWT_AUDIENCE")
	}
	for _, name := range v.config.ClientClaims {
		client := claims.text(name)
		if len(client) > maxClient {
			return bearer, 0, fmt.Errorf("the client's name is over %d bytes", maxClient)
		}
		if client != "" {
			return Bearer{
				Client:   client,
				HasScope: claims.holdsScope("scope") || claims.holdsScope("scp"),
				TokenID:  cut(claims.text("jti")),
			}, exp, nil
		}
	}
	return bearer, 0, errors.New("no client: none of JWT_CLIENT_CLAIM is a non-empty string")
}

// cut returns what a log needs of a text that others chose: 64 bytes of it.
func cut(text string) string { return strings.Clone(text[:min(len(text), 64)]) }

// holdsScope looks for Scope in a claim: a string of names with single spaces between (RFC 6749, section 3.3), or an
// array of names.
func (m members) holdsScope(claim string) bool {
	return slices.Contains(strings.Split(m.text(claim), " "), Scope) || slices.Contains(m.texts(claim), Scope)
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }
