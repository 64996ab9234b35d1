package redirecturi_test

import (
	"encoding/json"
	"net/url"
	"os"
	"strings"
	"testing"

	"authsession/internal/redirecturi"
)

// Browsers and Go find the same scheme, the same host and no userinfo in every URI that Check accepts.
// testdata/whatwg.mjs recorded how browsers parse each row.
func TestCheckAgreesWithBrowsers(t *testing.T) {
	data, err := os.ReadFile("testdata/whatwg.json")
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]string
	if err := json.Unmarshal(data, &rows); err != nil {
		t.Fatal(err)
	}
	accepted := 0
	for _, row := range rows {
		uri := row[0]
		if redirecturi.Check(uri) != nil {
			continue
		}
		accepted++
		scheme, _, _ := strings.Cut(strings.ToLower(uri), ":")
		u, err := url.Parse(uri)
		if len(row) == 1 || err != nil {
			// The authority of a private-use scheme is the app's own and may have a port such as "80a", and a label may
			// begin with xn-- without being Punycode. A parser that rejects either sends no one to another host.
			if !strings.Contains(scheme, ".") && !strings.Contains(strings.ToLower(uri), "xn--") {
				t.Errorf("%q is accepted; Go says %v, browsers %q", uri, err, row[1:])
			}
			continue
		}
		protocol, hostname, username := row[1], row[2], row[3]
		if scheme != u.Scheme || scheme+":" != protocol || username != "" || u.User != nil {
			t.Errorf("%q: scheme %q and user %v in Go, %q and %q in browsers", uri, u.Scheme, u.User, protocol, username)
		}
		host := u.Hostname()
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		// Browsers write an IPv4-mapped IPv6 address in hex.
		inHex := strings.Contains(host, ":ffff:1.2.3.4")
		if web := protocol == "https:" || protocol == "http:"; web && !strings.EqualFold(host, hostname) && !inHex {
			t.Errorf("%q: host %q in Go, %q in browsers", uri, host, hostname)
		}
	}
	if accepted < 100 {
		t.Fatalf("%d of %d rows accepted, want 100 or more", accepted, len(rows))
	}
}
