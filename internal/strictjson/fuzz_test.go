package strictjson

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"
)

// FuzzObject holds Object, Text and Texts against encoding/json. But for the package's own rules, both take the same
// texts and find the same in them.
func FuzzObject(f *testing.F) {
	for _, test := range objectTests {
		if len(test.data) < 1000 { // the fuzzer is slow to shorten what is long
			f.Add([]byte(test.data))
		}
	}
	for _, data := range []string{
		`{"end_user_id":"eu_1"}`,
		`{"end_user_id":"eu_1","institution_id":"10","redirect_uri":"https://a.com/s","cancel_uri":"https://a.com/c"}`,
		`{"end_user_id":"\u0065u","institution_id":null,"redirect_uri":"","cancel_uri":"com.example.app:\/x"}`,
		`{"END_USER_ID":"x","end_user_id":"y","z":[{"end_user_id":1}]}`,
		`{"end_user_id":1,"institution_id":" ","redirect_uri":"http://x","cancel_uri":{}}`,
		`{"aud":["a","\u0062"],"scope":[],"scp":["a",null]}`,
	} {
		f.Add([]byte(data))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		members := map[string]string{}
		err := Object(data, func(name, value []byte) { members[string(name)] = string(value) })
		seen := lookAt(data)
		isObject := strings.HasPrefix(strings.TrimLeft(string(data), " \t\r\n"), "{")
		var fits bool
		switch err {
		case nil:
			fits = utf8.Valid(data) && isObject && json.Valid(data) && seen == looks{}
		case errNotUTF8:
			fits = !utf8.Valid(data)
		case errNotObject:
			fits = !isObject
		case errSyntax:
			fits = seen.unpaired || !json.Valid(data)
		case errNameTwice:
			fits = seen.nameTwice
		case errTooDeep:
			fits = seen.tooDeep
		}
		if !fits {
			t.Fatalf("Object = %v, but it is valid %t, an object %t, %+v", err, json.Valid(data), isObject, seen)
		}
		if err != nil {
			return
		}

		var object map[string]json.RawMessage
		if err := json.Unmarshal(data, &object); err != nil {
			t.Fatalf("it is taken, but: %v", err)
		}
		want := map[string]string{}
		for name, value := range object {
			want[name] = string(value)
		}
		if !maps.Equal(members, want) {
			t.Fatalf("members = %q, want %q", members, want)
		}
		for name, value := range object {
			var text *string
			unfit := json.Unmarshal(value, &text)
			if text == nil {
				text = new("")
			}
			if got, err := Text(value); (err == nil) != (unfit == nil) || err == nil && got != *text {
				t.Errorf("Text of %q = %q, %v, want %q, %v", name, got, err, *text, unfit)
			}
			var texts []*string
			unfit = json.Unmarshal(value, &texts)
			if unfit == nil && slices.Contains(texts, nil) {
				unfit = errNotStrings
			}
			got, err := Texts(value)
			same := slices.EqualFunc(got, texts, func(text string, want *string) bool { return text == *want })
			if (err == nil) != (unfit == nil) || err == nil && !same {
				t.Errorf("Texts of %q = %q, %v, want %d, %v", name, got, err, len(texts), unfit)
			}
		}
	})
}

// looks is how a text breaks the rules that encoding/json does not have.
type looks struct {
	tooDeep   bool
	nameTwice bool // at any depth
	unpaired  bool // a surrogate escape
}

// lookAt goes through data by encoding/json's tokens, which nest without a limit, as far as it is valid.
func lookAt(data []byte) (l looks) {
	l.unpaired = hasUnpaired(data)
	type level struct {
		names   map[string]bool // nil: an array
		isValue bool            // what comes next in an object
	}
	var levels []*level
	for d := json.NewDecoder(bytes.NewReader(data)); ; {
		token, err := d.Token()
		if err != nil {
			return l
		}
		delim, _ := token.(json.Delim)
		if delim == '}' || delim == ']' {
			levels = levels[:len(levels)-1]
			continue
		}
		if n := len(levels); n > 0 && levels[n-1].names != nil {
			inside := levels[n-1]
			if name, ok := token.(string); ok && !inside.isValue {
				l.nameTwice = l.nameTwice || inside.names[name]
				inside.names[name], inside.isValue = true, true
				continue
			}
			inside.isValue = false
		}
		switch delim {
		case '{':
			levels = append(levels, &level{names: map[string]bool{}})
		case '[':
			levels = append(levels, &level{})
		}
		l.tooDeep = l.tooDeep || len(levels) > 1000
	}
}

// hasUnpaired tells whether a surrogate escape has no partner. In JSON, a backslash begins an escape and nothing else.
func hasUnpaired(data []byte) bool {
	for i := 0; i < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		if r := escaped(data[i:]); utf16.IsSurrogate(r) {
			if utf16.DecodeRune(r, escaped(data[i+6:])) == utf8.RuneError {
				return true
			}
			i += 10
		}
		i++
	}
	return false
}

// escaped is the code unit whose \u escape data begins with, or 0.
func escaped(data []byte) rune {
	if len(data) < 6 || data[0] != '\\' || data[1] != 'u' {
		return 0
	}
	unit, _ := strconv.ParseUint(string(data[2:6]), 16, 16)
	return rune(unit)
}
