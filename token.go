package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	scope    = "api:user.write" // what a token must hold
	maxToken = 8 << 10          // bytes
	leeway   = 30               // seconds on exp, nbf and iat, for clocks that differ
)

// verifier checks the bearer tokens of the platform's authorization server: JWTs in
// compact form (RFC 7519, 7515), by the rules of RFC 8725.
type verifier struct {
	keys         *keySet
	algorithms   []jose.SignatureAlgorithm
	issuer       string   // "" demands none
	audience     string   // "" demands none
	clientClaims []string // the first that is a non-empty string names the client
	maxLifetime  time.Duration
	now          func() time.Time

	remembered, anew, refused atomic.Uint64 // tokens

	mu       sync.RWMutex
	verified map[[sha256.Size]byte]verifiedToken // by the token's hash
}

// identity is what a good token says of its bearer.
type identity struct {
	client   string
	hasScope bool
}

// errNoKeys is a key set that was never loaded: no token can be told good from bad.
var errNoKeys = errors.New("key set not loaded yet")

// verifiedToken is a token that was found good: partners use one for minutes, and its
// signature costs more than all else. It is good until exp, while the key set is the
// same: what else was checked stays true as time goes by.
type verifiedToken struct {
	who  identity
	exp  float64 // Unix seconds
	keys *[]jose.JSONWebKey
}

const maxVerified = 10_000 // tokens remembered

// verify returns the bearer of a good token. Its error is errNoKeys or says, without
// any of the token's text, why the token is not good.
func (v *verifier) verify(token string) (identity, error) {
	if !wellFormed(token) {
		v.refused.Add(1)
		return identity{}, errors.New("not a compact JWT")
	}
	keys := v.keys.keys.Load()
	hash := sha256.Sum256(append(make([]byte, 0, 1024), token...)) // a usual token stays off the heap
	v.mu.RLock()
	known, found := v.verified[hash]
	v.mu.RUnlock()
	if found && known.keys == keys && unixSeconds(v.now()) < known.exp+leeway {
		v.remembered.Add(1)
		return known.who, nil
	}
	who, exp, err := v.verifyAnew(token)
	if err != nil {
		if err != errNoKeys {
			v.refused.Add(1)
		}
		return identity{}, err
	}
	v.anew.Add(1)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.verified == nil {
		v.verified = map[[sha256.Size]byte]verifiedToken{}
	}
	if len(v.verified) >= maxVerified && !found {
		for other := range v.verified {
			delete(v.verified, other)
			break
		}
	}
	v.verified[hash] = verifiedToken{who, exp, keys}
	return who, nil
}

// verifyAnew checks header, signature and claims.
func (v *verifier) verifyAnew(token string) (who identity, exp float64, err error) {
	kid, err := checkHeader(token)
	if err != nil {
		return identity{}, 0, err
	}
	// The library's errors quote the token, so they are not passed on.
	signed, err := jose.ParseSignedCompact(token, v.algorithms)
	if err != nil {
		return identity{}, 0, errors.New("malformed, or signed with an algorithm that is not allowed")
	}
	keys, err := v.keys.find(kid, signed.Signatures[0].Header.Algorithm)
	if err != nil {
		return identity{}, 0, err
	}
	for _, key := range keys {
		if payload, err := signed.Verify(key.Key); err == nil {
			return v.checkClaims(payload)
		}
	}
	return identity{}, 0, errors.New("bad signature")
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

// checkHeader checks what the signature library would let pass, and returns the key
// id, "" where there is none. Keys in the header (jwk, jku, x5c, x5u) are not looked at.
func checkHeader(token string) (kid string, err error) {
	encoded, _, _ := strings.Cut(token, ".")
	data, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return "", errors.New("header is not base64url")
	}
	header, err := decodeObject(data)
	if err != nil {
		return "", fmt.Errorf("header %w", err)
	}
	// RFC 7515, section 4.1.11; RFC 7797; RFC 7516, section 4.1.3.
	for _, name := range []string{"crit", "b64", "zip"} {
		if _, given := header[name]; given {
			return "", fmt.Errorf("header has %s", name)
		}
	}
	if typ, given := header["typ"]; given { // RFC 9068, section 4; RFC 7515, section 4.1.9
		text, _ := typ.(string)
		fold := func(t string) bool { return strings.EqualFold(t, text) } // ToLower would make an i of U+0130
		if !slices.ContainsFunc([]string{"JWT", "at+jwt", "application/JWT", "application/at+jwt"}, fold) {
			return "", errors.New("typ is not of an access token")
		}
	}
	if value, given := header["kid"]; given {
		text, ok := value.(string)
		if !ok {
			return "", errors.New("kid is not a string")
		}
		kid = text
	}
	return kid, nil
}

// checkClaims checks the claims of a token whose signature is good.
func (v *verifier) checkClaims(payload []byte) (who identity, exp float64, err error) {
	claims, err := decodeObject(payload)
	if err != nil {
		return who, 0, fmt.Errorf("payload %w", err)
	}
	now := unixSeconds(v.now())
	exp, given, err := numericDate(claims, "exp")
	switch {
	case err != nil:
		return who, 0, err
	case !given:
		return who, 0, errors.New("no exp")
	case now >= exp+leeway: // RFC 7519, section 4.1.4: before it, not at it
		return who, 0, errors.New("expired")
	case exp-now > v.maxLifetime.Seconds():
		return who, 0, errors.New("exp is further away than JWT_MAX_LIFETIME")
	}
	for _, name := range []string{"nbf", "iat"} {
		date, given, err := numericDate(claims, name)
		if err != nil {
			return who, 0, err
		}
		if given && date > now+leeway {
			return who, 0, fmt.Errorf("%s is in the future", name)
		}
	}
	if v.issuer != "" && claims["iss"] != v.issuer {
		return who, 0, errors.New("iss is not JWT_ISSUER")
	}
	if v.audience != "" && claims["aud"] != v.audience {
		if audiences, ok := stringArray(claims["aud"]); !ok || !slices.Contains(audiences, v.audience) {
			return who, 0, errors.New("aud does not have JWT_AUDIENCE")
		}
	}
	for _, name := range v.clientClaims {
		if client, _ := claims[name].(string); client != "" {
			return identity{client, holdsScope(claims["scope"]) || holdsScope(claims["scp"])}, exp, nil
		}
	}
	return who, 0, errors.New("no client: none of JWT_CLIENT_CLAIM is a non-empty string")
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }

// numericDate is a claim in seconds since 1970 (RFC 7519, section 2).
func numericDate(claims map[string]any, name string) (seconds float64, given bool, err error) {
	value, given := claims[name]
	if !given {
		return 0, false, nil
	}
	number, ok := value.(json.Number)
	if ok {
		seconds, err = number.Float64()
	}
	if !ok || err != nil {
		return 0, true, fmt.Errorf("%s is not a number", name)
	}
	return seconds, true, nil
}

// holdsScope looks in a string of names with single spaces between (RFC 6749,
// section 3.3) or an array of names.
func holdsScope(value any) bool {
	if names, ok := value.(string); ok {
		return slices.Contains(strings.Split(names, " "), scope)
	}
	names, ok := stringArray(value)
	return ok && slices.Contains(names, scope)
}

// stringArray is an array with nothing but strings.
func stringArray(value any) ([]string, bool) {
	array, ok := value.([]any)
	texts := make([]string, len(array))
	for i, member := range array {
		text, isString := member.(string)
		texts[i], ok = text, ok && isString
	}
	return texts, ok
}
