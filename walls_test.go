package main

import (
	"bytes"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"authsession/internal/testkit"
)

// mayImport has every package of this module, and which others of it, by their names under internal, it may import.
// Tests may import more.
var mayImport = map[string][]string{
	".": {"bearer", "clients", "embedredis", "groupcommit", "keytool", "linelog", "listener", "redirecturi",
		"redisurl", "sandbox", "seal", "strictjson"},
	"bench":                nil,
	"bench/floor":          nil,
	"bench/noop":           nil,
	"docs/examples":        nil,
	"internal/bearer":      {"strictjson"},
	"internal/clients":     {"redirecturi", "strictjson"},
	"internal/embedredis":  nil,
	"internal/groupcommit": nil,
	"internal/keytool":     {"bearer"},
	"internal/linelog":     nil,
	"internal/listener":    nil,
	"internal/redirecturi": nil,
	"internal/redistest":   {"embedredis", "testkit"},
	"internal/redisurl":    nil,
	"internal/sandbox":     {"redirecturi", "seal"},
	"internal/seal":        nil,
	"internal/strictjson":  nil,
	"internal/testkit":     {"bearer", "keytool"},
}

// The files of the root that know HTTP.
var mayServe = []string{"errors.go", "handlers.go", "platform.go", "server.go"}

const (
	maxColumns = 120 // of a line, a tab being one
	maxLines   = 400 // of a file that is no test
)

// TestWalls keeps what the compiler does not: who may import whom, that the root's files use each other in one
// direction, which of them know HTTP, and how long lines and files are.
func TestWalls(t *testing.T) {
	files := token.NewFileSet()
	var root []*ast.File
	imports := map[string]map[string]bool{} // by directory
	for dir := range mayImport {
		imports[dir] = map[string]bool{}
	}
	var serves []string
	texts := goFiles(t)
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		dir, isTest := path.Dir(name), strings.HasSuffix(name, "_test.go")
		checkLengths(t, name, texts[name], isTest)
		if isTest || strings.HasPrefix(dir, "e2e/compat") || dir == "deploy/check" { // modules of their own
			continue
		}
		file, err := parser.ParseFile(files, name, texts[name], parser.SkipObjectResolution)
		testkit.Must(t, err)
		if imports[dir] == nil {
			t.Errorf("package %s is not in mayImport", dir)
			continue
		}
		for _, spec := range file.Imports {
			imported := strings.Trim(spec.Path.Value, `"`)
			if other, ours := strings.CutPrefix(imported, "authsession/"); ours {
				other = strings.TrimPrefix(other, "internal/")
				imports[dir][other] = true
				if !slices.Contains(mayImport[dir], other) {
					t.Errorf("%s imports %s, which mayImport does not let package %s do", name, imported, dir)
				}
			}
			if dir == "." && imported == "net/http" {
				serves = append(serves, name)
			}
		}
		if dir == "." {
			root = append(root, file)
		}
	}
	for dir, names := range mayImport {
		if _, err := os.Stat(dir); err != nil {
			t.Errorf("mayImport has package %s: %v", dir, err)
		}
		for _, name := range names {
			if !imports[dir][name] {
				t.Errorf("mayImport lets package %s import %s, which it does not: remove that", dir, name)
			}
		}
	}
	if slices.Sort(serves); !slices.Equal(serves, mayServe) {
		t.Errorf("the root's files that import net/http = %v, want %v", serves, mayServe)
	}
	if cycle := findCycle(usesOf(t, files, root)); cycle != nil {
		t.Errorf("the root's files use each other in a circle: %s", strings.Join(cycle, " "))
	}
}

// goFiles are the Go files of the tree, of tests and other modules too, by path.
func goFiles(t *testing.T) map[string][]byte {
	t.Helper()
	tree, found := os.DirFS("."), map[string][]byte{}
	testkit.Must(t, fs.WalkDir(tree, ".", func(path string, entry fs.DirEntry, err error) error {
		name := entry.Name()
		if err != nil {
			return err
		}
		if entry.IsDir() && (name != "." && name[0] == '.' || name == "node_modules" || path == "e2e/compat/gen") {
			return fs.SkipDir
		}
		if !entry.IsDir() && strings.HasSuffix(name, ".go") {
			found[path], err = fs.ReadFile(tree, path)
		}
		return err
	}))
	return found
}

func checkLengths(t *testing.T, path string, text []byte, isTest bool) {
	t.Helper()
	if strings.HasPrefix(path, "docs") {
		return
	}
	n := 0
	for line := range bytes.Lines(text) {
		n++
		if columns := utf8.RuneCount(bytes.TrimSuffix(line, []byte("\n"))); columns > maxColumns {
			t.Errorf("%s:%d has %d columns, want %d at most", path, n, columns, maxColumns)
		}
	}
	if n > maxLines && !isTest && !strings.HasPrefix(path, "bench") {
		t.Errorf("%s has %d lines, want %d at most", path, n, maxLines)
	}
}

// usesOf tells of each file of the root which others have a declaration that it uses, with the name of one. A method is
// where it is declared.
func usesOf(t *testing.T, files *token.FileSet, root []*ast.File) map[string]map[string]string {
	t.Helper()
	list := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}}={{.Export}}", ".")
	list.Stderr = t.Output()
	out, err := list.Output()
	testkit.Must(t, err)
	exports := map[string]string{} // what the compiler says of a package, by import path
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "=")
		exports[path] = file
	}
	open := func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) }
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: importer.ForCompiler(files, "gc", open)}
	checked, err := config.Check("authsession", files, root, info)
	testkit.Must(t, err)
	uses := map[string]map[string]string{}
	for ident, object := range info.Uses {
		if object.Pkg() != checked {
			continue
		}
		user, owner := files.Position(ident.Pos()).Filename, files.Position(object.Pos()).Filename
		if user == owner {
			continue
		}
		if uses[user] == nil {
			uses[user] = map[string]string{}
		}
		if name := uses[user][owner]; name == "" || object.Name() < name {
			uses[user][owner] = object.Name()
		}
	}
	return uses
}

// findCycle returns a way from a file over those that it uses back to itself, with what each uses of the next. nil
// means that there is none.
func findCycle(uses map[string]map[string]string) []string {
	var way []string
	done := map[string]bool{}
	var visit func(file string) []string
	visit = func(file string) []string {
		if begin := slices.Index(way, file); begin >= 0 {
			return append(way[begin:], file)
		}
		if done[file] {
			return nil
		}
		done[file] = true
		for _, owner := range slices.Sorted(maps.Keys(uses[file])) {
			way = append(way, file, "-"+uses[file][owner]+"->")
			if cycle := visit(owner); cycle != nil {
				return cycle
			}
			way = way[:len(way)-2]
		}
		return nil
	}
	for _, file := range slices.Sorted(maps.Keys(uses)) {
		if cycle := visit(file); cycle != nil {
			return cycle
		}
	}
	return nil
}

func TestFindCycle(t *testing.T) {
	for name, test := range map[string]struct {
		uses map[string]map[string]string
		want string
	}{
		"none": {map[string]map[string]string{"a": {"b": "x", "c": "x"}, "b": {"c": "x"}}, ""},
		"two":  {map[string]map[string]string{"a": {"c": "x", "b": "y"}, "b": {"a": "z"}}, "a -y-> b -z-> a"},
		"behind a way": {
			map[string]map[string]string{"a": {"b": "x"}, "b": {"c": "y"}, "c": {"d": "z"}, "d": {"b": "w"}},
			"b -y-> c -z-> d -w-> b"},
	} {
		if got := strings.Join(findCycle(test.uses), " "); got != test.want {
			t.Errorf("%s: findCycle = %q, want %q", name, got, test.want)
		}
	}
}
