package keytool_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/keytool"
	"authsession/internal/testkit"

	"github.com/go-jose/go-jose/v4"
)

func TestTokenCannotPrint(t *testing.T) {
	key, _ := keygen(t)
	err := keytool.Token([]string{"-key", key, "-client", "acme"}, fullDisk{}, io.Discard)
	if !errors.Is(err, errFull) {
		t.Errorf("Token where stdout is a full disk = %v, want %v", err, errFull)
	}
}

func TestTokenFlags(t *testing.T) {
	const issuer, audience = "https://i.example", "https://a.example"
	key, c := keygen(t, "-alg", "EdDSA")
	c.Issuer, c.Audience, c.MaxLifetime, c.AccessOnly = issuer, audience, 48*time.Hour, true
	v := newVerifier(t, c)
	good := []string{"-issuer", issuer, "-audience", audience}
	and := func(flags ...string) []string { return slices.Concat(good, flags) }
	const badIssuer, badAudience = "iss is not JWT_ISSUER", "aud does not have JWT_AUDIENCE"
	for _, tt := range []struct {
		flags    []string
		hasScope bool
		why      string // "": the token is good
	}{
		{good, true, ""},
		{and("-scope", "openid api:user.write"), true, ""},
		{and("-alg", "EdDSA", "-ttl", "24h"), true, ""},
		{and("-ttl", "1s"), true, ""},
		{and("-scope", "openid"), false, ""},
		{and("-scope", ""), false, ""},
		{[]string{"-issuer", "https://other.example", "-audience", audience}, false, badIssuer},
		{[]string{"-issuer", issuer, "-audience", "https://other.example"}, false, badAudience},
		{[]string{"-issuer", issuer}, false, badAudience},
		{[]string{"-audience", audience}, false, badIssuer},
		{nil, false, badIssuer},
	} {
		token := mustPrint(t, keytool.Token, append([]string{"-key", key, "-client", "acme"}, tt.flags...)...)
		want, text := bearer.Bearer{}, ""
		if tt.why == "" {
			want = bearer.Bearer{Client: "acme", HasScope: tt.hasScope}
		}
		got, err := v.Verify(token)
		got.KeyID, got.TokenID = "", ""
		if err != nil {
			text = err.Error()
		}
		if got != want || text != tt.why {
			t.Errorf("Verify of a token by %q = %+v, %q, want %+v, %q", tt.flags, got, text, want, tt.why)
		}
	}

	var token, warning bytes.Buffer
	args := append([]string{"-key", key, "-client", "acme", "-ttl", "47h"}, good...)
	err := keytool.Token(args, &token, &warning)
	if says := warning.String(); err != nil || !strings.HasPrefix(says, "-ttl ") || !strings.Contains(says, "JWT_MAX_") {
		t.Errorf("Token -ttl 47h says %q, %v, want a warning about JWT_MAX_LIFETIME", &warning, err)
	}
	if _, err := v.Verify(strings.TrimSuffix(token.String(), "\n")); err != nil {
		t.Errorf("Verify of a token for 47h = %v, want it to be good", err)
	}
}

// payload returns the claims of a token as they stand.
func payload(t testing.TB, token string) map[string]any {
	t.Helper()
	data, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	testkit.Must(t, err)
	var claims map[string]any
	testkit.Must(t, json.Unmarshal(data, &claims))
	return claims
}

func TestTokenClaims(t *testing.T) {
	key, _ := keygen(t)
	all := []string{"-scope", "a b", "-issuer", "i", "-audience", "a", "-ttl", "90s"}
	for _, tt := range []struct {
		name  string
		flags []string
		ttl   float64
		want  map[string]any // beside iat, exp and jti
	}{
		{"none", nil, 3600, map[string]any{"client_id": "acme", "scope": "api:user.write"}},
		{"all", all, 90, map[string]any{"client_id": "acme", "scope": "a b", "iss": "i", "aud": "a"}},
		{"empty scope", []string{"-scope", ""}, 3600, map[string]any{"client_id": "acme"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"-key", key, "-client", "acme"}, tt.flags...)
			before := time.Now().Unix()
			got := payload(t, mustPrint(t, keytool.Token, args...))
			other := payload(t, mustPrint(t, keytool.Token, args...))
			iat, _ := got["iat"].(float64)
			jti, _ := got["jti"].(string)
			if int64(iat) < before || int64(iat) > time.Now().Unix() || len(jti) < 22 || jti == other["jti"] {
				t.Errorf("claims %v, want iat of now and a jti of its own", got)
			}
			want := maps.Clone(tt.want)
			want["iat"], want["exp"], want["jti"] = iat, iat+tt.ttl, jti
			if !maps.Equal(got, want) {
				t.Errorf("claims %v, want %v", got, want)
			}
		})
	}
}

// Sign puts the key's id and no more than that into the header, and the claims as they are into the payload.
func TestSign(t *testing.T) {
	for _, key := range []keytool.Key{testkit.RSA(), testkit.EC(), testkit.Ed()} {
		token, err := key.Sign(map[string]any{"a": "<é>", "b": []any{1, nil}})
		testkit.Must(t, err)
		signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{key.Algorithm})
		testkit.Must(t, err)
		got, err := signed.Verify(key.Private.Public())
		if want := `{"a":"<é>","b":[1,null]}`; err != nil || !sameJSON(t, got, want) {
			t.Errorf("%s: the payload is %s, %v, want %s", key.Algorithm, got, err, want)
		}
		header, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[0])
		testkit.Must(t, err)
		want := fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"JWT"}`, key.Algorithm, key.ID)
		if !sameJSON(t, header, want) {
			t.Errorf("%s: the header is %s, want %s", key.Algorithm, header, want)
		}
	}
}

func sameJSON(t testing.TB, got []byte, want string) bool {
	t.Helper()
	var a, b any
	testkit.Must(t, json.Unmarshal(got, &a))
	testkit.Must(t, json.Unmarshal([]byte(want), &b))
	return fmt.Sprint(a) == fmt.Sprint(b)
}
