package outboxsaga_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

const module = "outboxsaga"

// pkg is a package of the module: its import path without the module, and what its
// code (not its tests) imports.
type pkg struct {
	doc     bool
	imports map[string]string // path → file
}

// packages parses every Go file of the module.
func packages(t *testing.T) map[string]*pkg {
	t.Helper()
	found := map[string]*pkg{}
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if file != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(file))
		if found[dir] == nil {
			found[dir] = &pkg{imports: map[string]string{}}
		}
		p := found[dir]
		p.doc = p.doc || hasPackageComment(f)
		for _, i := range f.Imports {
			p.imports[strings.Trim(i.Path.Value, `"`)] = file
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func hasPackageComment(f *ast.File) bool {
	if f.Doc == nil {
		return false
	}
	want := "Package " + f.Name.Name + " "
	if f.Name.Name == "main" {
		want = "" // a command's comment begins with the command's name
	}
	return strings.HasPrefix(f.Doc.Text(), want)
}

// The arrows that may exist. Everything that is not listed is an error: a new arrow
// is a decision, not an accident. A value ending in /... allows what is below it;
// "std" is the standard library.
var arrows = map[string][]string{
	"events": {"std"},
	"outbox": {"std", "github.com/jackc/pgx/v5/...", "github.com/google/uuid"},
	"inbox": {"std", "outboxsaga/outbox", "github.com/jackc/pgx/v5/...", "github.com/jackc/puddle/v2",
		"github.com/google/uuid", "github.com/twmb/franz-go/..."},
	"order-service/order": domain, "stock-service/stock": domain, "payment-service/payment": domain,
	"order-service/migrations": {"std"}, "stock-service/migrations": {"std"}, "payment-service/migrations": {"std"},
}

var domain = []string{"std", "outboxsaga/events", "outboxsaga/outbox", "outboxsaga/inbox", "outboxsaga/internal/service",
	"github.com/jackc/pgx/v5/...", "github.com/gorilla/mux", "github.com/google/uuid"}

func TestImportArrows(t *testing.T) {
	all := packages(t)
	for dir, allowed := range arrows {
		p := all[dir]
		if p == nil {
			t.Errorf("package %s is gone: change this test with it", dir)
			continue
		}
		for imported, file := range p.imports {
			if !permits(allowed, imported) {
				t.Errorf("%s imports %s: this arrow is not in the design", file, imported)
			}
		}
	}
}

func permits(allowed []string, imported string) bool {
	for _, a := range allowed {
		below, isTree := strings.CutSuffix(a, "/...")
		switch {
		case a == "std" && !strings.Contains(strings.SplitN(imported, "/", 2)[0], ".") && !strings.HasPrefix(imported, module+"/"),
			a == imported, isTree && (imported == below || strings.HasPrefix(imported, below+"/")):
			return true
		}
	}
	return false
}

// Commands wire; nothing imports them. The services know nothing of each other.
func TestNothingImportsCommandsOrOtherServices(t *testing.T) {
	for dir, p := range packages(t) {
		for imported, file := range p.imports {
			target, ours := strings.CutPrefix(imported, module+"/")
			if !ours {
				continue
			}
			if strings.HasPrefix(target, "cmd/") || strings.HasSuffix(target, "-service") {
				t.Errorf("%s imports the command %s", file, target)
			}
			from, to := strings.SplitN(dir, "/", 2)[0], strings.SplitN(target, "/", 2)[0]
			if strings.HasSuffix(to, "-service") && strings.HasSuffix(from, "-service") && from != to {
				t.Errorf("%s imports %s of another service", file, target)
			}
			if strings.HasSuffix(to, "-service") && strings.HasPrefix(dir, "internal/") && path.Base(target) != "migrations" {
				t.Errorf("%s imports %s: shared code must not know a service", file, target)
			}
		}
	}
}

func TestEveryPackageHasAComment(t *testing.T) {
	var missing []string
	for dir, p := range packages(t) {
		if !p.doc {
			missing = append(missing, dir)
		}
	}
	sort.Strings(missing)
	for _, dir := range missing {
		t.Errorf("%s has no package comment (for package x: \"Package x …\")", dir)
	}
}
