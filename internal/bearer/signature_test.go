package bearer_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"authsession/internal/keytool"
	"authsession/internal/testkit"

	"github.com/go-jose/go-jose/v4"
)

func TestTokenAlgorithm(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).load(t)
	rs, ec, ed := testkit.RSA(), testkit.EC(), testkit.Ed()
	claims := payload(t, "")
	as := func(alg jose.SignatureAlgorithm) keytool.Key {
		return keytool.Key{ID: "rsa", Algorithm: alg, Private: rs.Private}
	}
	tests := []tokenTest{
		{"RS256", sign(t, rs), accepted},
		{"ES256", sign(t, ec), accepted},
		{"EdDSA", sign(t, ed), accepted},
		{"RS256 by hand", raw(t, rs, header(rs, ""), claims), accepted},
		{"ES256 by hand", raw(t, ec, header(ec, ""), claims), accepted},
		{"EdDSA by hand", raw(t, ed, header(ed, ""), claims), accepted},

		{"RS256 with the EC key's kid", raw(t, rs, `{"alg":"RS256","kid":"ec"}`, claims), noKey},
		{"ES256 with the RSA key's kid", raw(t, ec, `{"alg":"ES256","kid":"rsa"}`, claims), noKey},
		{"EdDSA with the EC key's kid", raw(t, ed, `{"alg":"EdDSA","kid":"ec"}`, claims), noKey},
		{"ES256 that the RSA key signed", raw(t, rs, header(ec, ""), claims), badSignature},
		{"EdDSA that the EC key signed", raw(t, ec, header(ed, ""), claims), badSignature},
		{"PS256 by a key for RS256", sign(t, as(jose.PS256)), noKey},
		{"another key under the kid", sign(t, testkit.NewKey(t, "ec", jose.ES256)), badSignature},
		{"another curve under the kid", sign(t, testkit.NewKey(t, "ec", jose.ES384)), malformed},

		{"RS384", sign(t, as(jose.RS384)), malformed},
		{"RS512", sign(t, as(jose.RS512)), malformed},
		{"HS256 with no key", hs256(`{"alg":"HS256"}`, claims, nil), malformed},
		{"HS256 with secret", hs256(`{"alg":"HS256","kid":"rsa"}`, claims, []byte("secret")), malformed},
	}
	for _, alg := range []string{
		`"none"`, `"None"`, `"nOnE"`, `"NONE"`, `"es256"`, `"ES256 "`, `""`, `null`, `256`, `true`, `["ES256"]`, `{}`,
	} {
		header := `{"alg":` + alg + `,"kid":"ec"}`
		tests = append(tests,
			tokenTest{"alg " + alg, raw(t, ec, header, claims), malformed},
			tokenTest{"alg " + alg + " without signature", b64(header) + "." + b64(claims) + ".", malformed},
			tokenTest{"alg " + alg + " with junk", b64(header) + "." + b64(claims) + ".anVuaw", malformed})
	}
	v.check(t, tests)
}

// A public key is a secret that everybody has, in each form it comes in.
func TestTokenHMACWithPublicKey(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).load(t)
	claims := payload(t, "")
	var tests []tokenTest
	for _, k := range []keytool.Key{testkit.RSA(), testkit.EC(), testkit.Ed()} {
		der, err := x509.MarshalPKIXPublicKey(k.Private.Public())
		testkit.Must(t, err)
		text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
		secrets := map[string][]byte{
			"PEM": bytes.TrimSuffix(text, []byte("\n")), "PEM and newline": text, "DER": der,
			"JWK": []byte(asJSON(t, k.Public())),
		}
		switch public := k.Private.Public().(type) {
		case *rsa.PublicKey:
			pkcs1 := x509.MarshalPKCS1PublicKey(public)
			secrets["modulus"], secrets["modulus in base64"] = public.N.Bytes(), []byte(b64(public.N.Bytes()))
			secrets["PKCS 1"] = pkcs1
			secrets["PKCS 1 PEM"] = pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: pkcs1})
		case ed25519.PublicKey:
			secrets["point"] = public
		}
		asRS256 := map[string]string{"rsa": badSignature, "ec": noKey, "ed": noKey}[k.ID]
		for form, secret := range secrets {
			name := "the " + form + " of " + k.ID
			hs, rs := fmt.Sprintf(`{"alg":"HS256","kid":%q}`, k.ID), fmt.Sprintf(`{"alg":"RS256","kid":%q}`, k.ID)
			tests = append(tests,
				tokenTest{"HS256 with " + name, hs256(hs, claims, secret), malformed},
				tokenTest{"RS256 in the header, HMAC with " + name, hs256(rs, claims, secret), asRS256})
		}
	}
	v.check(t, tests)
}

func TestTokenAlgorithmsConfigured(t *testing.T) {
	p256, p384 := testkit.EC(), testkit.NewKey(t, "p384", jose.ES384)
	ps := keytool.Key{ID: "rsa", Algorithm: jose.PS256, Private: testkit.RSA().Private}
	c := config(keyFile(t, p256.Public(), p384.Public(), ps.Public()))
	c.Algorithms = []jose.SignatureAlgorithm{jose.ES384, jose.PS256}
	v := newVerifier(c).load(t)
	p384AsP256 := keytool.Key{ID: "ec", Algorithm: jose.ES384, Private: p384.Private}
	v.check(t, []tokenTest{
		{"ES384", sign(t, p384), accepted},
		{"PS256", sign(t, ps), accepted},
		{"ES256", sign(t, p256), malformed},
		{"RS256", sign(t, testkit.RSA()), malformed},
		{"ES384 under the P-256 key's kid", sign(t, p384AsP256), noKey},
	})
}

// Each key of the set has a flaw or a freedom of its own, which its id names.
func TestTokenKey(t *testing.T) {
	ofBits := func(id string, bits int) keytool.Key {
		private, err := rsa.GenerateKey(rand.Reader, bits)
		testkit.Must(t, err)
		return keytool.Key{ID: id, Algorithm: jose.RS256, Private: private}
	}
	ourRSA := testkit.RSA().Private
	free := keytool.Key{ID: "free", Algorithm: jose.RS256, Private: ourRSA}
	forPS, forEncryption := testkit.NewKey(t, "for-ps", jose.PS256), testkit.NewKey(t, "for-encryption", jose.ES256)
	noUse, otherAlg := testkit.NewKey(t, "no-use", jose.ES256), testkit.NewKey(t, "other-alg", jose.ES256)
	p384, rsa1024, rsa2047 := testkit.NewKey(t, "p384", jose.ES384), ofBits("rsa-1024", 1024), ofBits("rsa-2047", 2047)
	double := testkit.NewKey(t, "double", jose.ES256)
	double2 := keytool.Key{ID: "double", Algorithm: jose.RS256, Private: ourRSA}
	double3 := keytool.Key{ID: "double", Algorithm: jose.ES256, Private: noUse.Private}
	public := func(k keytool.Key, edit func(*jose.JSONWebKey)) jose.JSONWebKey {
		entry := k.Public()
		edit(&entry)
		return entry
	}
	noAlg := func(j *jose.JSONWebKey) { j.Algorithm = "" }
	v := newVerifier(config(keyFile(t,
		public(free, noAlg),
		forPS.Public(),
		public(forEncryption, func(j *jose.JSONWebKey) { j.Use = "enc" }),
		public(noUse, func(j *jose.JSONWebKey) { j.Use = "" }),
		public(otherAlg, func(j *jose.JSONWebKey) { j.Algorithm = "RS256" }),
		public(p384, noAlg),
		rsa1024.Public(), rsa2047.Public(),
		double.Public(), public(double2, noAlg), public(double3, noAlg),
	))).load(t)
	freePS := keytool.Key{ID: "free", Algorithm: jose.PS256, Private: free.Private}
	psAsRS := keytool.Key{ID: "for-ps", Algorithm: jose.RS256, Private: forPS.Private}
	double4 := keytool.Key{ID: "double", Algorithm: jose.ES256, Private: otherAlg.Private}
	v.check(t, []tokenTest{
		{"RSA key without alg, RS256", sign(t, free), accepted},
		{"RSA key without alg, PS256", sign(t, freePS), accepted},
		{"RSA key without alg, ES256 in the header", raw(t, free, `{"alg":"ES256","kid":"free"}`, payload(t, "")), noKey},
		{"key for PS256, PS256", sign(t, forPS), accepted},
		{"key for PS256, RS256", sign(t, psAsRS), noKey},
		{"key for encryption", sign(t, forEncryption), noKey},
		{"key without use", sign(t, noUse), accepted},
		{"EC key with an RSA alg", sign(t, otherAlg), noKey},
		{"P-384 key, ES256 in the header", raw(t, noUse, `{"alg":"ES256","kid":"p384"}`, payload(t, "")), noKey},
		{"RSA of 1024 bits", sign(t, rsa1024), noKey},
		{"RSA of 2047 bits", sign(t, rsa2047), noKey},
		{"kid of three keys, the first", sign(t, double), accepted},
		{"kid of three keys, the one of another type", sign(t, double2), accepted},
		{"kid of three keys, the last", sign(t, double3), accepted},
		{"kid of three keys, none of them", sign(t, double4), badSignature},
	})
}

// A key that the token itself brings or points to is not used, nor is it fetched.
func TestTokenOwnKey(t *testing.T) {
	thief := testkit.NewKey(t, "thief", jose.ES256)
	jwk := asJSON(t, thief.Public())
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, thief.Private.Public(), thief.Private)
	testkit.Must(t, err)
	var requests atomic.Int64
	trap := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		fmt.Fprintf(w, `{"keys":[%s]}`, jwk)
	}))
	defer trap.Close()
	v := newVerifier(config(ourKeys(t))).load(t)
	ec, claims := testkit.EC(), payload(t, "")
	var tests []tokenTest
	for name, member := range map[string]string{
		"jwk":         fmt.Sprintf(`"jwk":%s`, jwk),
		"x5c":         fmt.Sprintf(`"x5c":[%q]`, base64.StdEncoding.EncodeToString(cert)),
		"jku":         fmt.Sprintf(`"jku":%q`, trap.URL),
		"x5u":         fmt.Sprintf(`"x5u":%q`, trap.URL),
		"jku and jwk": fmt.Sprintf(`"jku":%q,"jwk":%s`, trap.URL, jwk),
	} {
		for kid, why := range map[string]string{"ec": badSignature, "thief": noKey, "": badSignature} {
			header := fmt.Sprintf(`{"alg":"ES256","kid":%q,%s}`, kid, member)
			tests = append(tests, tokenTest{name + ", kid " + kid, raw(t, thief, header, claims), why})
		}
		// What the header brings does no harm where one of our keys signed.
		tests = append(tests, tokenTest{name + ", signed by us", raw(t, ec, header(ec, ","+member), claims), accepted})
	}
	v.check(t, tests)
	if n := requests.Load(); n != 0 {
		t.Errorf("%d requests to the token's own URL, want none", n)
	}
}

func TestKeySetSkipsKeys(t *testing.T) {
	good, private := newES256(t, "good"), newES256(t, "private")
	privateRSA := keytool.Key{ID: "private-rsa", Algorithm: jose.RS256, Private: testkit.RSA().Private}
	privateEd := keytool.Key{ID: "private-ed", Algorithm: jose.EdDSA, Private: testkit.Ed().Private}
	withPrivate := func(k keytool.Key) jose.JSONWebKey {
		entry := k.Public()
		entry.Key = k.Private
		return entry
	}
	secret := bytes.Repeat([]byte("s"), 32)
	with := func(k keytool.Key, member string, value any) any {
		entry := map[string]any{}
		testkit.Must(t, json.Unmarshal([]byte(asJSON(t, k.Public())), &entry))
		entry[member] = value
		return entry
	}
	forOps := func(id string) keytool.Key { return newES256(t, id) }
	large := b64(append([]byte{1}, make([]byte, 1024)...)) // 8,193 bits
	noFit := "its type, size and alg fit none of JWT_ALGORITHMS"
	var entries []any
	var reasons []any
	for _, skipped := range []struct {
		entry any
		why   string // with the key id
	}{
		{nil, `"": must be one JSON object`},
		{5, `"": must be one JSON object`},
		{"key", `"": must be one JSON object`},
		{[]any{}, `"": must be one JSON object`},
		{json.RawMessage(`{"kid":"a","kid":"b","kty":"EC"}`), `"a": must not give a member name twice in one object`},
		{map[string]any{}, `"": "missing json web key type"`},
		{map[string]any{"kty": "EC", "kid": "half", "crv": "P-256", "x": "AA"},
			`"half": "invalid EC key, missing x/y values"`},
		{map[string]any{"kty": "EC", "kid": "off-curve", "crv": "P-256", "x": b64(secret), "y": b64(secret)},
			`"off-curve": "invalid EC key, X/Y are not on declared curve"`},
		{map[string]any{"kty": "EC", "kid": "k1", "crv": "secp256k1", "x": b64(secret), "y": b64(secret)},
			`"k1": "unsupported key type, format, curve, or RSA modulus size"`},
		{map[string]any{"kty": "RSA", "kid": "rsa", "n": "not base64!", "e": "AQAB"},
			`"rsa": "illegal base64 data at input byte 3"`},
		{map[string]any{"kty": "RSA", "kid": "rsa8193", "n": large, "e": "AQAB"},
			`"rsa8193": "unsupported key type, format, curve, or RSA modulus size"`},
		{map[string]any{"kty": "RSA", "kid": "rsa1024", "n": b64(bytes.Repeat([]byte{255}, 128)), "e": "AQAB"},
			`"rsa1024": ` + noFit},
		{map[string]any{"kty": "OKP", "kid": "x25519", "crv": "X25519", "x": b64(secret)},
			`"x25519": "unsupported key type, format, curve, or RSA modulus size"`},
		{map[string]any{"kty": "new", "kid": "good"}, `"good": "unsupported key type, format, curve, or RSA modulus size"`},
		{map[string]any{"kty": "new", "kid": 5}, `"": "json: cannot unmarshal number into Go value of type string"`},
		{map[string]any{"kty": "new", "kid": "\u202e\u009b\n" + strings.Repeat("x", 100)},
			`"\u202e\u009b\n` + strings.Repeat("x", 58) + `": "unsupported key type, format, curve, or RSA modulus size"`},
		{map[string]any{"kty": "oct", "kid": "oct", "alg": "HS256", "k": b64(secret)}, `"oct": not a public key`},
		{withPrivate(private), `"private": not a public key`},
		{withPrivate(privateRSA), `"private-rsa": not a public key`},
		{withPrivate(privateEd), `"private-ed": not a public key`},
		{with(forOps("enc"), "use", "enc"), `"enc": use is not sig`},
		{with(forOps("p256-as-rs"), "alg", "RS256"), `"p256-as-rs": ` + noFit},
		{with(forOps("ops-sign"), "key_ops", []string{"sign"}), `"ops-sign": key_ops lacks verify`},
		{with(forOps("ops-none"), "key_ops", []string{}), `"ops-none": key_ops lacks verify`},
		{with(forOps("ops-null"), "key_ops", nil), `"ops-null": key_ops lacks verify`},
		{with(forOps("ops-text"), "key_ops", "verify"), `"ops-text": key_ops lacks verify`},
		{with(forOps("ops-case"), "key_ops", []string{"Verify"}), `"ops-case": key_ops lacks verify`},
	} {
		entries, reasons = append(entries, skipped.entry), append(reasons, skipped.why)
	}
	ops := forOps("ops")
	entries = append(entries, good.Public(), with(ops, "key_ops", []string{"sign", "verify"}))
	v := newVerifier(config(keyFile(t, entries...))).load(t)
	testkit.WaitFor(t, 5*time.Second, "the log line", func() bool { return v.log.Has("key set loaded") })
	line := v.log.Line(t, "msg", "key set loaded")
	if line["keys"] != 2.0 {
		t.Errorf("log has %v keys, want 2", line["keys"])
	}
	if got, _ := line["skipped"].([]any); !slices.Equal(got, reasons) {
		for i, want := range reasons {
			if i >= len(got) || got[i] != want {
				t.Errorf("log has %d keys skipped, number %d is not %s: %v", len(got), i, want, got)
				break
			}
		}
	}
	claims := payload(t, "")
	v.check(t, []tokenTest{
		{"good", sign(t, good), accepted},
		{"key_ops with verify", sign(t, ops), accepted},
		{"private EC", sign(t, private), noKey},
		{"private RSA", sign(t, privateRSA), noKey},
		{"private Ed25519", sign(t, privateEd), noKey},
		{"symmetric", hs256(`{"alg":"HS256","kid":"oct"}`, claims, secret), malformed},
		{"symmetric in disguise", hs256(`{"alg":"ES256","kid":"oct"}`, claims, secret), noKey},
	})
}

// Of very many keys that are skipped the log names some.
func TestKeySetSkipsMany(t *testing.T) {
	v := newVerifier(config(keyFile(t, append(make([]any, 10_000), testkit.EC().Public())...))).load(t)
	testkit.WaitFor(t, 5*time.Second, "the log line", func() bool { return v.log.Has("key set loaded") })
	if n := len(v.log.String()); n > 10<<10 {
		t.Errorf("log has %d bytes of 10,000 keys skipped", n)
	}
}

// An RSA key may have up to 8,192 bits.
func TestTokenLargeRSA(t *testing.T) {
	for _, bits := range []int{4104, 8192} {
		primes := bits / 513 // few bits in each: they are found at once
		//lint:ignore SA1019 only such a key is made in time
		private, err := rsa.GenerateMultiPrimeKey(rand.Reader, primes, bits)
		testkit.Must(t, err)
		large := keytool.Key{ID: "large", Algorithm: jose.RS256, Private: private}
		newVerifier(config(keyFile(t, large.Public()))).load(t).accept(t, sign(t, large))
	}
}

func TestKeySetKidless(t *testing.T) {
	one, forRS := newES256(t, "one"), testkit.NewKey(t, "", jose.RS256)
	forPS := keytool.Key{ID: "ps", Algorithm: jose.PS256, Private: testkit.RSA().Private}
	ed1, ed2 := testkit.NewKey(t, "ed1", jose.EdDSA), testkit.NewKey(t, "ed2", jose.EdDSA)
	v := newVerifier(config(keyFile(t,
		one.Public(), forRS.Public(), forPS.Public(), ed1.Public(), ed2.Public(),
	))).load(t)
	claims := payload(t, "")
	noID := forPS
	noID.ID = ""
	v.check(t, []tokenTest{
		{"one key", raw(t, one, `{"alg":"ES256"}`, claims), accepted},
		{"one key, kid empty", raw(t, one, `{"alg":"ES256","kid":""}`, claims), accepted},
		{"one of two RSA keys is for RS256", raw(t, forRS, `{"alg":"RS256"}`, claims), accepted},
		{"the other is for PS256", sign(t, noID), accepted},
		{"two keys", raw(t, ed1, `{"alg":"EdDSA"}`, claims), noKey},
		{"two keys, kid empty", raw(t, ed2, `{"alg":"EdDSA","kid":""}`, claims), noKey},
		{"two keys, kid given", sign(t, ed2), accepted},
	})
}
