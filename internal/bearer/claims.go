package bearer

import (
	"cmp"
	"encoding/json"
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
func (v *Verifier) checkClaims(payload []byte) (t verifiedToken, err error) {
	claims, err := parseObject(payload)
	if err != nil {
		return t, fmt.Errorf("payload %w", err)
	}
	if t.exp, err = v.checkDates(claims); err != nil {
		return t, err
	}
	for _, name := range v.config.ClientClaims {
		t.ClientID = cmp.Or(t.ClientID, claims.text(name))
	}
	audiences := append(claims.texts("aud"), claims.text("aud"))
	switch {
	case v.config.Issuer != "" && claims.text("iss") != v.config.Issuer:
		return t, errors.New("iss is not JWT_ISSUER")
	case v.config.Audience != "" && !slices.Contains(audiences, v.config.Audience):
		return t, errors.New("aud does not have JWT_AUDIENCE")
	case t.ClientID == "":
		return t, errors.New("no client: none of JWT_CLIENT_CLAIM is a non-empty string")
	case len(t.ClientID) > maxClientIDBytes:
		return t, fmt.Errorf("the client's name is over %d bytes", maxClientIDBytes)
	}
	t.HasScope = slices.ContainsFunc(v.config.ScopeClaims, claims.hasScope)
	t.ID = cut(claims.text("jti"))
	t.thumbprint, err = claims.thumbprint()
	return t, err
}

// checkDates checks exp, nbf and iat, in Unix seconds (RFC 7519, section 2). It returns exp.
func (v *Verifier) checkDates(claims members) (exp float64, err error) {
	dates := map[string]float64{} // 0 if absent
	for _, name := range []string{"exp", "nbf", "iat"} {
		dates[name], err = strconv.ParseFloat(string(claims[name]), 64) // it parses no JSON value but a number
		if err != nil && claims[name] != nil {
			return 0, fmt.Errorf("%s is not a number", name)
		}
	}
	exp, now := dates["exp"], unixSeconds(time.Now())
	switch {
	case claims["exp"] == nil:
		return 0, errors.New("no exp")
	case expired(exp, now):
		ago := time.Duration(min(now-exp, 9e9) * 1e9) // 9e9 s is about the longest Duration
		return 0, fmt.Errorf("expired %s ago", ago.Round(time.Second))
	case exp-now > v.config.MaxLifetime.Seconds():
		return 0, errors.New("exp is further away than JWT_MAX_LIFETIME")
	case dates["nbf"] > now+leeway:
		return 0, errors.New("nbf is in the future")
	case dates["iat"] > now+leeway:
		return 0, errors.New("iat is in the future")
	}
	return exp, nil
}

// expired reports whether a token is no longer valid (RFC 7519, section 4.1.4). Its times are in Unix seconds.
func expired(exp, now float64) bool { return now >= exp+leeway }

// members are the members of a JSON object by name, with the text of their values.
type members map[string]json.RawMessage

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

// hasScope reports whether a claim contains Scope. The claim is a string of names separated by single spaces (RFC 6749,
// section 3.3) or an array of names.
func (m members) hasScope(claim string) bool {
	return slices.Contains(strings.Split(m.text(claim), " "), Scope) || slices.Contains(m.texts(claim), Scope)
}

// cut returns the first 64 bytes of a text for the log.
func cut(text string) string { return text[:min(len(text), 64)] }

func unixSeconds(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }
