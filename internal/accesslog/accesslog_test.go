package accesslog

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// A line has what slog's JSON handler would write.
func TestEntryLine(t *testing.T) {
	e := Entry{Start: time.Now(), Duration: 1500 * time.Microsecond, RequestID: "r-1", Method: "P\tST", Route: "none",
		Status: 500, RemoteIP: "192.0.2.1", ClientID: "acme\x00", TokenID: strings.Repeat("j", 65),
		Unknown: []string{"a", "", "\"é"}, Error: "fault", ErrorID: "E",
		Cause: "quote \" slash \\ feed \n bad \xff é \u2028 <&>"}
	record := slog.NewRecord(e.Start.Add(e.Duration), slog.LevelError, "request", 0)
	record.Add("request_id", "r-1", "method", `P\tST`, "route", "none", "status", 500, "duration_us", 1500,
		"remote_ip", "192.0.2.1", "client_id", `acme\x00`, "jti", strings.Repeat("j", 64),
		"unknown_members", []string{"a", "", `\"\u00e9`}, "error", "fault", "error_id", "E", "cause", e.Cause)
	var want bytes.Buffer
	if err := slog.NewJSONHandler(&want, nil).Handle(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	got := e.Line(slog.LevelError)
	var gotAny, wantAny any
	if err := json.Unmarshal(got, &gotAny); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(want.Bytes(), &wantAny); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(gotAny, wantAny) || bytes.Count(got, []byte("\n")) != 1 {
		t.Errorf("Line() = %s, want %s", got, want.String())
	}
}

func TestRemoteIP(t *testing.T) {
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	const peer = "10.0.0.1:1"
	for name, tt := range map[string]struct {
		peer      string
		forwarded []string
		want      string
	}{
		"no header":            {peer: peer, want: "10.0.0.1"},
		"one address":          {peer: peer, forwarded: []string{"192.0.2.7"}, want: "192.0.2.7"},
		"peer is no proxy":     {peer: "198.51.100.1:1", forwarded: []string{"192.0.2.7"}, want: "198.51.100.1"},
		"forged left part":     {peer: peer, forwarded: []string{"127.0.0.1, 192.0.2.7"}, want: "192.0.2.7"},
		"forged left header":   {peer: peer, forwarded: []string{"127.0.0.1", "192.0.2.7"}, want: "192.0.2.7"},
		"forged as a proxy":    {peer: peer, forwarded: []string{"10.9.9.9, 192.0.2.7"}, want: "192.0.2.7"},
		"two proxies":          {peer: peer, forwarded: []string{"1.1.1.1, 192.0.2.7,10.0.0.2"}, want: "192.0.2.7"},
		"two headers":          {peer: peer, forwarded: []string{"1.1.1.1, 192.0.2.7", "10.0.0.2"}, want: "192.0.2.7"},
		"proxies all the way":  {peer: peer, forwarded: []string{"10.0.0.3, 10.0.0.2"}, want: "10.0.0.3"},
		"tabs and spaces":      {peer: peer, forwarded: []string{"1.1.1.1 ,\t192.0.2.7  "}, want: "192.0.2.7"},
		"port":                 {peer: peer, forwarded: []string{"192.0.2.7:4711"}, want: "192.0.2.7"},
		"IPv6":                 {peer: "[fd00::1]:1", forwarded: []string{"2001:DB8:0::7"}, want: "2001:db8::7"},
		"IPv6 in brackets":     {peer: peer, forwarded: []string{"[2001:db8::7]"}, want: "2001:db8::7"},
		"IPv6 with a port":     {peer: peer, forwarded: []string{"[2001:db8::7]:4711"}, want: "2001:db8::7"},
		"IPv6 with a zone":     {peer: "[fd00::1%eth0]:1", forwarded: []string{"fe80::7%eth1"}, want: "fe80::7"},
		"mapped with a port":   {peer: peer, forwarded: []string{"[::ffff:192.0.2.7]:80"}, want: "192.0.2.7"},
		"mapped proxy":         {peer: peer, forwarded: []string{"192.0.2.7, ::ffff:10.0.0.2"}, want: "192.0.2.7"},
		"mapped peer":          {peer: "[::ffff:10.0.0.1]:1", forwarded: []string{"192.0.2.7"}, want: "192.0.2.7"},
		"garbage on the left":  {peer: peer, forwarded: []string{"garbage, 192.0.2.7"}, want: "192.0.2.7"},
		"garbage on the right": {peer: peer, forwarded: []string{"192.0.2.7, garbage"}, want: "10.0.0.1"},
		"garbage between":      {peer: peer, forwarded: []string{"192.0.2.7, unknown, 10.0.0.2"}, want: "10.0.0.2"},
		"empty":                {peer: peer, forwarded: []string{""}, want: "10.0.0.1"},
		"empty on the right":   {peer: peer, forwarded: []string{"192.0.2.7,"}, want: "192.0.2.7"},
		"empty between":        {peer: peer, forwarded: []string{"192.0.2.7, ,\t,10.0.0.2"}, want: "192.0.2.7"},
		"empty header":         {peer: peer, forwarded: []string{"192.0.2.7", "", "10.0.0.2"}, want: "192.0.2.7"},
		"empty and forged":     {peer: peer, forwarded: []string{"10.9.9.9, , 192.0.2.7,"}, want: "192.0.2.7"},
		"empty and garbage":    {peer: peer, forwarded: []string{"192.0.2.7, unknown, , 10.0.0.2"}, want: "10.0.0.2"},
		"a name":               {peer: peer, forwarded: []string{"evil.com"}, want: "10.0.0.1"},
		"a number":             {peer: peer, forwarded: []string{"3221225991"}, want: "10.0.0.1"},
		"leading zero":         {peer: peer, forwarded: []string{"192.0.02.7"}, want: "10.0.0.1"},
		"line feed":            {peer: peer, forwarded: []string{"192.0.2.7\nx"}, want: "10.0.0.1"},
		"peer without address": {peer: "@", want: ""},
	} {
		if got := RemoteIP(tt.peer, tt.forwarded, proxies); got != tt.want {
			t.Errorf("%s: RemoteIP(%q, %q) = %q, want %q", name, tt.peer, tt.forwarded, got, tt.want)
		}
	}
	if got := RemoteIP(peer, []string{"192.0.2.7"}, nil); got != "10.0.0.1" {
		t.Errorf("RemoteIP without trusted proxies = %q, want the peer", got)
	}
}

func TestTraceID(t *testing.T) {
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	const good = "00-" + id + "-00f067aa0ba902b7-01"
	for name, tt := range map[string]struct {
		header string
		want   string
	}{
		"sampled":                  {header: good, want: id},
		"not sampled":              {header: good[:53] + "00", want: id},
		"later version":            {header: "cc" + good[2:], want: id},
		"later version, more":      {header: "cc" + good[2:] + "-what-the-future", want: id},
		"later version, other end": {header: "cc" + good[2:] + ".what"},
		"more than version 00":     {header: good + "-more"},
		"a dash at the end":        {header: good + "-"},
		"version ff":               {header: "ff" + good[2:]},
		"upper case":               {header: strings.ToUpper(good)},
		"underscores":              {header: strings.ReplaceAll(good, "-", "_")},
		"trace of zeros":           {header: "00-" + strings.Repeat("0", 32) + good[35:]},
		"parent of zeros":          {header: good[:36] + "0000000000000000-01"},
		"too short":                {header: good[:54]},
		"space in front":           {header: " " + good},
		"no hex in version":        {header: "0g" + good[2:]},
		"no hex in trace":          {header: good[:34] + "g" + good[35:]},
		"no hex in flags":          {header: good[:53] + "0x"},
		"empty":                    {},
	} {
		if got := TraceID([]string{tt.header}); got != tt.want {
			t.Errorf("%s: TraceID(%q) = %q, want %q", name, tt.header, got, tt.want)
		}
	}
	if got := TraceID([]string{good, good}); got != "" {
		t.Errorf("TraceID of two headers = %q, want none", got)
	}
	if got := TraceID(nil); got != "" {
		t.Errorf("TraceID of no header = %q, want none", got)
	}
}
