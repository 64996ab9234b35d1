package bearer

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"authsession/internal/strictjson"
)

const (
	leeway           = 30 // seconds that clocks may differ; holds for exp, nbf and iat
	maxClientIDBytes = 128
)

// checkClaims checks the claims of a token whose signature is good. The result has no key ID and no keys yet.
//
// go-jose's jwt.Claims does not do here: it takes null for an absent claim, does not require exp, and refuses a token
// for the type of a claim that Config ignores.
func (v *Verifier) checkClaims(payload []byte) (verifiedToken, error) {
	claims, err := parseObject(payload)
	if err != nil {
		return verifiedToken{}, fmt.Errorf("payload %w", err)
	}
	exp, err := v.checkDates(claims)
	if err != nil {
		return verifiedToken{}, err
	}
	if want := v.config.Issuer; want != "" && claims.text("iss") != want {
		return verifiedToken{}, errors.New("iss is not JWT_ISSUER")
	}
	if want := v.config.Audience; want != "" && claims.text("aud") != want && !slices.Contains(claims.texts("aud"), want) {
		return verifiedToken{}, errors.New("aud does not have JWT_AUDIENCE")
	}
	clientID, err := v.clientID(claims)
	if err != nil {
		return verifiedToken{}, err
	}
	thumbprint, err := claims.thumbprint()
	if err != nil {
		return verifiedToken{}, err
	}
	return verifiedToken{
		Token: Token{
			ClientID: clientID,
			HasScope: claims.hasScope("scope") || claims.hasScope("scp"),
			ID:       cut(claims.text("jti")),
		},
		exp:        exp,
		thumbprint: thumbprint,
	}, nil
}

// checkDates checks exp, nbf and iat. It returns exp in Unix seconds.
func (v *Verifier) checkDates(claims members) (exp float64, err error) {
	now := time.Now()
	exp, given, err := claims.date("exp")
	switch {
	case err != nil:
		return 0, err
	case !given:
		return 0, errors.New("no exp")
	case expired(exp, now):
		return 0, errors.New("expired")
	case exp-unixSeconds(now) > v.config.MaxLifetime.Seconds():
		return 0, errors.New("exp is further away than JWT_MAX_LIFETIME")
	}
	for _, name := range []string{"nbf", "iat"} {
		date, given, err := claims.date(name)
		if err != nil {
			return 0, err
		}
		if given && date > unixSeconds(now)+leeway {
			return 0, fmt.Errorf("%s is in the future", name)
		}
	}
	return exp, nil
}

// expired reports whether a token is no longer valid (RFC 7519, section 4.1.4). exp is in Unix seconds.
func expired(exp float64, now time.Time) bool { return unixSeconds(now) >= exp+leeway }

func (v *Verifier) clientID(claims members) (string, error) {
	for _, name := range v.config.ClientClaims {
		id := claims.text(name)
		if len(id) > maxClientIDBytes {
			return "", fmt.Errorf("the client's name is over %d bytes", maxClientIDBytes)
		}
		if id != "" {
			return id, nil
		}
	}
	return "", errors.New("no client: none of JWT_CLIENT_CLAIM is a non-empty string")
}

// members are the members of a JSON object by name, with the text of their values.
type members map[string][]byte

func parseObject(data []byte) (members, error) {
	m := members{}
	err := strictjson.Object(data, func(name, value []byte) { m[string(name)] = value })
	return m, err
}

// text returns a member that is a string. It returns "" if the member is absent or of another type.
func (m members) text(name string) string {
	text, _ := strictjson.Text(m[name])
	return text
}

// texts returns a member that is an array of strings. It returns nil if the member is absent or of another type.
func (m members) texts(name string) []string {
	texts, _ := strictjson.Texts(m[name])
	return texts
}

// date returns a member in Unix seconds (RFC 7519, section 2). It returns an error if the member is not a number.
func (m members) date(name string) (seconds float64, given bool, err error) {
	value, given := m[name]
	if !given {
		return 0, false, nil
	}
	seconds, err = strconv.ParseFloat(string(value), 64) // which parses no JSON value but a number
	if err != nil {
		return 0, true, fmt.Errorf("%s is not a number", name)
	}
	return seconds, true, nil
}

// hasScope reports whether a claim contains Scope. The claim is a string of names separated by single spaces (RFC 6749,
// section 3.3) or an array of names.
func (m members) hasScope(claim string) bool {
	return slices.Contains(strings.Split(m.text(claim), " "), Scope) || slices.Contains(m.texts(claim), Scope)
}

// cut returns the first 64 bytes of a text for the log.
func cut(text string) string { return text[:min(len(text), 64)] }

func unixSeconds(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }
