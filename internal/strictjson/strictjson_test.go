package strictjson_test

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"authsession/internal/strictjson"
)

// The messages of Object, Text and Texts.
const (
	byteMark   = "must not begin with a byte order mark"
	notUTF8    = "must be UTF-8: the error is at byte offset %d"
	notObject  = "must be one JSON object"
	badSyntax  = "must be valid JSON: the error is at byte offset %d"
	badEscape  = `must be valid JSON: the \u escape at byte offset %d is invalid or unpaired`
	cutOff     = "must be valid JSON: it ends too early, at byte offset %d"
	more       = "must have nothing after its object, which ends at byte offset %d"
	nameTwice  = "must not give a member name twice in one object"
	tooDeep    = "must not nest deeper than 1000 levels"
	notString  = "must be a string"
	notStrings = "must be an array of strings"
)

// arrays returns an object that holds n nested arrays, so it has n+1 levels.
func arrays(n int) string {
	return `{"deep":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}`
}

// objects returns n nested objects. The innermost one holds value.
func objects(n int, value string) string {
	return strings.Repeat(`{"a":`, n) + value + strings.Repeat("}", n)
}

// objectTests are also the seeds of FuzzObject. If want is empty, Object accepts data. A %d in want stands for at.
var objectTests = []struct {
	name string
	data string
	want string
	at   int
}{
	{name: "no member", data: `{}`},
	{name: "white space everywhere", data: " \t\r\n{ \"a\" : [ 1 , { } , [ ] ] , \"b\" : { \"c\" : null } } \n"},
	{name: "every kind of value", data: `{"a":"x","b":-1.5e+3,"c":true,"d":false,"e":null,"f":{"g":[]},"h":[{}]}`},
	{name: "every escape", data: `{"a":"\"\\\/\b\f\n\r\t\u00e9\uD83D\uDE00\ufffd"}`},
	{name: "DEL and characters beyond ASCII", data: "{\"\x7f\":\"é\U0001F600\u2028\ufffd\"}"},
	{name: "names that differ in case", data: `{"a":1,"A":2}`},
	{name: "same name on each level", data: `{"a":{"a":[{"a":1}]}}`},
	{name: "same name in siblings", data: `{"a":{"x":1},"b":{"x":1},"c":[{"x":1},{"x":1}]}`},
	{name: "1,000 levels of arrays", data: arrays(999)},
	{name: "1,000 levels of objects", data: objects(1000, "1")},
	{name: "1,000 levels twice", data: `{"x":` + objects(999, "1") + `,"y":` + objects(999, "1") + `}`},

	{name: "empty input", data: "", want: notObject},
	{name: "white space only", data: " \r\n\t", want: notObject},
	{name: "null", data: `null`, want: notObject},
	{name: "array", data: `[{}]`, want: notObject},
	{name: "byte order mark", data: "\ufeff{}", want: byteMark},

	{name: "UTF-16 LE", data: "{\x00}\x00", want: badSyntax, at: 1},
	{name: "cut after the brace", data: `{`, want: cutOff, at: 1},
	{name: "cut in a string", data: `{"a":"\ud83d`, want: cutOff, at: 12},
	{name: "cut in a character", data: "{\"a\":\"é\xf0\x9f\x98", want: cutOff, at: 11},
	{name: "cut before the last brace", data: "{\"a\":1\n", want: cutOff, at: 7},
	{name: "escape without hex digits", data: `{"a":"x\u00zz"}`, want: badEscape, at: 7},
	{name: "leading comma", data: `{,"a":1}`, want: badSyntax, at: 1},
	{name: "trailing comma", data: `{"a":1,}`, want: badSyntax, at: 6},
	{name: "no comma", data: `{"a":1 "b":2}`, want: badSyntax, at: 7},
	{name: "no colon", data: `{"a" 1}`, want: badSyntax, at: 5},
	{name: "name without quotes", data: `{a:1}`, want: badSyntax, at: 1},
	{name: "single quotes", data: `{'a':1}`, want: badSyntax, at: 1},
	{name: "comment", data: `{/**/"a":1}`, want: badSyntax, at: 1},
	{name: "literal in capitals", data: `{"a":TRUE}`, want: badSyntax, at: 5},
	{name: "letter after the object", data: `{}x`, want: more, at: 2},
	{name: "second object", data: `{}{}`, want: more, at: 2},
	{name: "NUL after the object", data: "{}\x00", want: more, at: 2},
	{name: "line separator after the object", data: "{}\u2028", want: more, at: 2},
	{name: "line feed in a string", data: "{\"a\":\"\n\"}", want: badSyntax, at: 6},
	{name: "unknown escape", data: `{"a":"\x41"}`, want: badSyntax, at: 6},

	{name: "stray byte", data: "{\"a\":\"\xff\"}", want: notUTF8, at: 6},
	{name: "overlong form", data: "{\"a\":\"\xc0\xaf\"}", want: notUTF8, at: 6},
	{name: "surrogate in UTF-8", data: "{\"a\":\"\xed\xa0\x80\"}", want: notUTF8, at: 6},

	{name: "high surrogate alone", data: `{"a":"\ud83d"}`, want: badEscape, at: 6},
	{name: "low surrogate alone", data: `{"a":"\ude00"}`, want: badEscape, at: 6},
	{name: "surrogates in reverse", data: `{"a":"\ude00\ud83d"}`, want: badEscape, at: 6},
	{name: "high surrogate and a letter", data: `{"a":"\ud83d\u0061"}`, want: badEscape, at: 6},
	{name: "surrogate in an inner name", data: `{"a":[{"\ud800":1}]}`, want: badEscape, at: 8},

	{name: "name twice", data: `{"a":1,"a":2}`, want: nameTwice},
	{name: "name twice, once escaped", data: `{"a":1,"\u0061":2}`, want: nameTwice},
	{name: "name twice, an emoji and its surrogates", data: `{"😀":1,"\ud83d\ude00":2}`, want: nameTwice},
	{name: "name twice, many others between", want: nameTwice,
		data: `{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"\u0061":9}`},
	{name: "name twice in a value", data: `{"a":{"b":1,"b":2}}`, want: nameTwice},
	{name: "name twice in an array's object", data: `{"a":[{"b":1},{"b":1,"b":2}]}`, want: nameTwice},

	{name: "1,001 levels of arrays", data: arrays(1000), want: tooDeep},
	{name: "1,001 levels of objects", data: objects(1001, "1"), want: tooDeep},
	{name: "1,001 levels of both", data: strings.Repeat(`{"a":[`, 500) + "[]" + strings.Repeat("]}", 500), want: tooDeep},
	{name: "deeper than encoding/json allows", data: arrays(32 << 10), want: tooDeep},
	{name: "deep without an end", data: strings.Repeat(`{"a":[`, 10000), want: tooDeep},
}

// message returns err's text, "" for nil.
func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestObject(t *testing.T) {
	for _, tt := range objectTests {
		want := strings.ReplaceAll(tt.want, "%d", strconv.Itoa(tt.at))
		if got := message(strictjson.Object([]byte(tt.data), func(_, _ []byte) {})); got != want {
			t.Errorf("%s: Object(%.100q) = %q, want %q", tt.name, tt.data, got, want)
		}
	}
}

// Object passes names unescaped and values as they are in the input.
func TestObjectMembers(t *testing.T) {
	data := `{ "a" : "\u0061" , "\u0065\"\n😀" :{ "x" : [1, 2] } ,"":-1e5, "b":null,"c": [ ] }`
	var got []string
	err := strictjson.Object([]byte(data), func(name, value []byte) {
		got = append(got, string(name)+"="+string(value))
	})
	want := []string{`a="\u0061"`, "e\"\n😀={ \"x\" : [1, 2] }", "=-1e5", "b=null", "c=[ ]"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("members = %q, %v, want %q", got, err, want)
	}
}

// Object may be called by several goroutines, and inside member.
func TestObjectConcurrently(t *testing.T) {
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			for range 100 {
				var inner error
				outer := strictjson.Object([]byte(`{"a":{"b":1},"c":{"d":2}}`), func(_, value []byte) {
					inner = errors.Join(inner, strictjson.Object(value, func(_, _ []byte) {}))
				})
				if err := errors.Join(outer, inner); err != nil {
					t.Error(err)
				}
			}
		})
	}
	readers.Wait()
}

func TestText(t *testing.T) {
	for _, tt := range []struct{ value, want, wantErr string }{
		{value: `"a b"`, want: "a b"},
		{value: `""`},
		{value: `"\u0061\"\\\/\n\u00e9\ud83d\ude00"`, want: "a\"\\/\né😀"},
		{value: `null`},
		{value: ``},
		{value: `-1`, wantErr: notString},
		{value: `true`, wantErr: notString},
		{value: `{"a":"b"}`, wantErr: notString},
		{value: `["a"]`, wantErr: notString},
	} {
		if got, err := strictjson.Text([]byte(tt.value)); got != tt.want || message(err) != tt.wantErr {
			t.Errorf("Text(%s) = %q, %v, want %q, %q", tt.value, got, err, tt.want, tt.wantErr)
		}
	}
}

func TestTexts(t *testing.T) {
	for _, tt := range []struct {
		value   string
		want    []string
		wantErr string
	}{
		{value: `["b","a","b"]`, want: []string{"b", "a", "b"}},
		{value: "[ \"a\"\t,\r\n\"b\" ]", want: []string{"a", "b"}},
		{value: `["\u0061\n","\ud83d\ude00",""]`, want: []string{"a\n", "😀", ""}},
		{value: `[]`, want: []string{}},
		{value: `null`},
		{value: ``},
		{value: `"a"`, wantErr: notStrings},
		{value: `1`, wantErr: notStrings},
		{value: `{"0":"a"}`, wantErr: notStrings},
		{value: `["a",1]`, wantErr: notStrings},
		{value: `["a",null]`, wantErr: notStrings},
		{value: `[false,"a"]`, wantErr: notStrings},
		{value: `["a",{"b":"c"}]`, wantErr: notStrings},
	} {
		got, err := strictjson.Texts([]byte(tt.value))
		if !slices.Equal(got, tt.want) || (got == nil) != (tt.want == nil) || message(err) != tt.wantErr {
			t.Errorf("Texts(%s) = %#v, %v, want %#v, %q", tt.value, got, err, tt.want, tt.wantErr)
		}
	}
}

func TestAppend(t *testing.T) {
	object := slices.Clip([]byte("{")) // so that no append overwrites another
	for _, tt := range []struct {
		name string
		got  []byte
		want string
	}{
		{name: "string", got: strictjson.AppendString(object, "a b~"), want: `{"a b~"`},
		{name: "empty string", got: strictjson.AppendString(nil, ""), want: `""`},
		{name: "escapes", got: strictjson.AppendString(nil, "\"\\\n\x00</é"), want: `"\"\\\n\u0000</é"`},
		{name: "invalid UTF-8", got: strictjson.AppendString(nil, "a\xffb"), want: "\"a\ufffdb\""},
		{name: "member", got: strictjson.AppendMember(object, `"a":`, "b"), want: `{"a":"b"`},
		{name: "empty member", got: strictjson.AppendMember(object, `"a":`, ""), want: `{`},
		{name: "strings", got: strictjson.AppendStrings(object, `"a":`, []string{"é", ""}), want: `{"a":["é",""]`},
		{name: "no strings", got: strictjson.AppendStrings(object, `"a":`, []string{}), want: `{"a":[]`},
		{name: "nil strings", got: strictjson.AppendStrings(object, `"a":`, nil), want: `{`},
	} {
		if string(tt.got) != tt.want {
			t.Errorf("%s: appended %s, want %s", tt.name, tt.got, tt.want)
		}
	}
}
