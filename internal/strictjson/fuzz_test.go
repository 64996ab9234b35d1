package strictjson_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"authsession/internal/strictjson"
)

// FuzzObject compares the package with encoding/json. Object accepts an input only if encoding/json does and the input
// keeps the stricter rules. Both find the same members in it, and AppendString's strings decode to the same text.
func FuzzObject(f *testing.F) {
	for _, tt := range objectTests {
		if len(tt.data) < 1000 { // the fuzzer is slow to shorten long inputs
			f.Add([]byte(tt.data))
		}
	}
	f.Add([]byte(`{"end_user_id":"\u0065u","institution_id":null,"redirect_uri":"","cancel_uri":"com.example.app:\/x"}`))
	f.Add([]byte(`{"aud":["a","\u0062"],"scope":[],"scp":["a",null]}`))
	const numbers = "0 -0 7 10 0.0 1.50 -0.1 0e0 1E5 1e+05 1.2e-3 1e999 123456789012345678901234567890 " +
		"- +1 01 -01 00 1. .5 -.5 1.e1 1e 1e+ 1e1.5 0x1 1_0 1,0 NaN -Infinity 1a --1 ٣"
	for number := range strings.FieldsSeq(numbers) {
		f.Add([]byte(`{"n":` + number + `}`))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		members := map[string]string{}
		err := strictjson.Object(data, func(name, value []byte) { members[string(name)] = string(value) })
		if want := isStrict(data); (err == nil) != want {
			t.Fatalf("Object = %v, want accepted %t", err, want)
		}
		if err != nil {
			return
		}
		var object map[string]json.RawMessage
		if err := json.Unmarshal(data, &object); err != nil {
			t.Fatalf("encoding/json: %v", err)
		}
		want := map[string]string{}
		for name, value := range object {
			want[name] = string(value)
		}
		if !maps.Equal(members, want) {
			t.Fatalf("members = %q, want %q", members, want)
		}
		for name, value := range object {
			compareValue(t, name, value)
		}
	})
}

// compareValue compares Text and Texts with encoding/json.
func compareValue(t *testing.T, name string, value []byte) {
	var text string
	wantErr := json.Unmarshal(value, &text)
	got, err := strictjson.Text(value)
	if (err == nil) != (wantErr == nil) || got != text {
		t.Errorf("Text of %q = %q, %v, want %q, %v", name, got, err, text, wantErr)
	}
	var back string
	if err := json.Unmarshal(strictjson.AppendString(nil, got), &back); err != nil || back != got {
		t.Errorf("AppendString of %q reads back as %q, %v", got, back, err)
	}
	var texts []*string
	if json.Unmarshal(value, &texts) != nil || slices.Contains(texts, nil) {
		if got, err := strictjson.Texts(value); err == nil {
			t.Errorf("Texts of %q = %q, want an error", name, got)
		}
		return
	}
	all, err := strictjson.Texts(value)
	if err != nil || !slices.EqualFunc(all, texts, func(text string, want *string) bool { return text == *want }) {
		t.Errorf("Texts of %q = %q, %v, want %d as in %s", name, all, err, len(texts), value)
	}
}

var (
	escapes   = regexp.MustCompile(`(?i)\\[^u]|\\ud[89ab]..\\ud[c-f]..`) // without surrogates, or a pair of them
	surrogate = regexp.MustCompile(`(?i)\\ud[89a-f]`)
)

// isStrict reports whether Object must accept data.
func isStrict(data []byte) bool {
	if !utf8.Valid(data) || !json.Valid(data) || bytes.TrimLeft(data, " \t\r\n")[0] != '{' ||
		surrogate.Match(escapes.ReplaceAll(data, nil)) {
		return false
	}
	depth, nameTwice := shape(json.NewDecoder(bytes.NewReader(data)))
	return depth <= 1000 && !nameTwice
}

// shape reads a value. It returns the nesting depth, and whether one object has the same name twice.
func shape(d *json.Decoder) (depth int, nameTwice bool) {
	token, _ := d.Token()
	delim, nests := token.(json.Delim)
	if !nests {
		return 0, false
	}
	names := map[json.Token]bool{}
	for d.More() {
		if delim == '{' {
			name, _ := d.Token()
			nameTwice = nameTwice || names[name]
			names[name] = true
		}
		inner, twice := shape(d)
		depth, nameTwice = max(depth, inner), nameTwice || twice
	}
	_, _ = d.Token() // the closing delimiter
	return depth + 1, nameTwice
}
