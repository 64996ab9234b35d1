// The sandbox consent page of -dev in real browsers: the built binary, Debian's Chromium, Debian's Firefox where it is
// installed, and a partner's site that the flow comes from and goes back to.
//
//   npm ci && npm test                    (CHROMIUM=/path/to/another, FIREFOX=/path/to/another)
//   SCREENSHOTS=screenshots npm test      writes the pictures here; needs the ports 8080 and 8081, which they show
//
// playwright-core drives Firefox by WebDriver BiDi. 1.65 sends a command that Firefox 153 does not know, so 1.64 stays
// until Debian's Firefox knows emulation.setMediaFeaturesOverride.

import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { chromium, firefox } from 'playwright-core'

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')
const folder = mkdtempSync(join(tmpdir(), 'authsession-e2e-'))
const limit = 30_000 // ms, for what takes a fraction of it

const firefoxPath = process.env.FIREFOX ?? '/usr/bin/firefox-esr'

let service, browser, partner // processes, and the partner's site
let api, token, redis, sandbox, command // what -dev prints
let site // the partner's origin; another site than the sandbox's to a browser

before(async () => {
  execFileSync('go', ['build', '-o', join(folder, 'authsession'), '.'], { cwd: new URL('..', import.meta.url), stdio: 'inherit' })
  service = spawn(join(folder, 'authsession'), ['-dev'], { env: { PATH: process.env.PATH, TMPDIR: folder, ADDR: process.env.SCREENSHOTS ? '127.0.0.1:8080' : '127.0.0.1:0' }, stdio: ['ignore', 'pipe', 'ignore'] })
  let printed = ''
  await new Promise((resolve, reject) => {
    service.on('error', reject)
    service.on('exit', code => reject(new Error(`authsession -dev exits with ${code}: ${printed}`)))
    service.stdout.on('data', data => {
      printed += data
      if (/^curl [^]*}'\n/m.test(printed)) resolve()
    })
  })
  command = printed.match(/^curl [^]*}'\n/m)[0]
  api = command.match(/(http:\S+)\/auth\/session/)[1]
  token = command.match(/Bearer ([^']+)/)[1]
  sandbox = command.match(/(http:\S+)\/callback"/)[1]
  redis = printed.match(/redis\D+?([\d.]+:\d+)/i)[1]
  const end = Date.now() + limit
  while (!(await fetch(api + '/readyz')).ok) assert(Date.now() < end, 'the service does not get ready')

  partner = createServer(answerForPartner)
  await new Promise(resolve => partner.listen(0, 'localhost', resolve))
  site = `http://localhost:${partner.address().port}`
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', timeout: 60_000 })
})

after(async () => {
  await browser?.close()
  partner?.closeAllConnections()
  partner?.close()
  service?.removeAllListeners('exit').kill()
  rmSync(folder, { recursive: true })
})

// What the partner's site was asked for, one entry a request.
const visits = []

function answerForPartner(request, response) {
  visits.push({ url: request.url, referer: request.headers.referer })
  if (request.url.startsWith('/hop')) { // a partner that sends the browser on
    response.writeHead(302, { Location: 'https://acme.invalid/' + request.url.slice('/hop'.length) }).end()
    return
  }
  response.setHeader('Content-Type', 'text/html')
  if (request.url.startsWith('/slow')) {
    setTimeout(() => response.end('<!doctype html><title>Partner</title>'), 500)
    return
  }
  if (request.url.startsWith('/embed-no-referrer')) response.setHeader('Referrer-Policy', 'no-referrer')
  response.end(request.url.startsWith('/embed') ? embed : '<!doctype html><title>Partner</title><h1>Back at the partner</h1>')
}

// embed does what the reference platform's browser SDK does with an authServer and a session_id; with popup it opens a
// window instead.
const embed = `<!doctype html><title>Partner</title><p>The app's own page.</p><iframe title="Consent" width="520" height="590"></iframe><script>
  const { authServer, id, popup } = JSON.parse(decodeURIComponent(location.search.slice(1)))
  const source = authServer + '?sess_id=' + encodeURIComponent(id)
  window.messages = []
  addEventListener('message', event => messages.push({ trusted: event.origin === new URL(source).origin, data: event.data }))
  if (popup) window.consent = open(source)
  else document.querySelector('iframe').src = source
</script>`

// session makes a session as the partner's backend does.
async function session(members = {}) {
  const response = await fetch(api + '/auth/session', {
    method: 'POST',
    headers: { Authorization: 'Bearer ' + token, 'Content-Type': 'application/json' },
    body: JSON.stringify({ end_user_id: 'eu_2yRHN2ag2y4p8kCtm5DOeccZEXB', ...members }),
  })
  assert.equal(response.status, 200)
  return response.json()
}

// tell sends Redis a command about a session's record, and returns the reply.
async function tell({ session_id }, command, ...more) {
  const [host, port] = redis.split(':')
  const words = [command, 'auth_session:' + createHash('sha256').update(session_id).digest('hex'), ...more]
  const socket = connect(port, host, () => socket.end(`*${words.length}\r\n` + words.map(word => `$${word.length}\r\n${word}\r\n`).join('')))
  let reply = ''
  for await (const data of socket) reply += data
  return reply
}

// forget removes a session's record, as its expiry does.
async function forget(session) {
  assert.equal(await tell(session, 'DEL'), ':1\r\n')
}

// spoil makes Redis fail for a session: its key holds what neither GET nor GETDEL takes.
async function spoil(session) {
  await forget(session)
  assert.equal(await tell(session, 'LPUSH', 'x'), ':1\r\n')
}

// tab opens a window of its own, and fails the test on a script's error or what the page's policy blocks.
async function tab(t, { engine = browser, ...options } = {}) {
  const context = await engine.newContext(options)
  context.setDefaultTimeout(limit)
  const wrong = []
  context.on('weberror', error => wrong.push(String(error.error())))
  context.on('console', message => {
    if (/Content.Security.Policy|Refused|violates/i.test(message.text())) wrong.push(message.text())
  })
  t.after(async () => {
    await context.close()
    assert.deepEqual(wrong, [])
  })
  return context.newPage()
}

const approve = page => page.getByRole('button', { name: 'Approve' })
const cancel = page => page.getByRole('button', { name: 'Cancel' })
const create = page => page.getByRole('button', { name: 'Create a session' })
const open = page => page.getByRole('link', { name: 'Open the consent page' })
const gone = page => page.getByRole('heading', { name: 'This link does not work' })

const failure = { error: 'access_denied', error_type: 'CONSENT_ENDUSER_DENIED' }

// The outcomes of docs/consent-page.md: the button, and the error and its type, which an approval does not have.
const outcomes = [
  ['Approve'],
  ['Cancel', failure],
  ...['CONSENT_ENDUSER_INELIGIBLE', 'CONSENT_OTP_FAILURE', 'CONSENT_TIMEOUT', 'CONSENT_UPSTREAM_PROCESSING_ERROR']
    .map(type => [type, { error: 'server_error', error_type: type }]),
]

// decide ends the session of a page, or of a frame, by a button.
async function decide(page, button) {
  if (button.startsWith('CONSENT_')) await page.getByText('Fail with').click()
  await page.getByRole('button', { name: button }).click()
}

test('the page says who asks, for whom, where and how long', async t => {
  const page = await tab(t)
  const made = await session({ institution_id: '10', permissions: ['accounts', 'balances'], arrangement_id: 'arr_1' })
  assert.equal((await page.goto(made.auth_url)).status(), 200)
  await page.getByText('Sandbox.').waitFor()
  assert.deepEqual(await page.getByRole('definition').allTextContents(), ['dev', 'eu_2yRHN2ag2y4p8kCtm5DOeccZEXB', '10', 'accounts, balances', 'arr_1'])
  const timer = page.getByRole('timer')
  assert.match(await timer.textContent(), /^(30 min 0|29 min \d+) s$/)
  const first = await timer.textContent()
  await page.waitForFunction(text => document.getElementById('left').textContent !== text, first)
  assert.equal((await page.reload()).status(), 200)
})

test('approve', async t => {
  const page = await tab(t)
  const made = await session({ redirect_uri: site + '/success?x=%41&y=a+b&z', cancel_uri: site + '/cancel' })
  await page.goto(made.auth_url)
  await approve(page).click()
  await page.getByRole('heading', { name: 'Back at the partner' }).waitFor()
  const { url, referer } = visits.findLast(visit => visit.url.startsWith('/success'))
  assert.match(url, /^\/success\?x=%41&y=a\+b&z&consent_id=[A-Z2-7]{26}$/)
  assert.equal(referer, undefined)
  assert.equal((await page.goto(made.auth_url)).status(), 404)
  await gone(page).waitFor()
})

test('cancel, by keyboard', async t => {
  const page = await tab(t)
  const made = await session({ redirect_uri: site + '/success', cancel_uri: site + '/cancel?x=%41' })
  await page.goto(made.auth_url)
  await page.keyboard.press('Tab')
  assert(await approve(page).evaluate(button => button.matches(':focus-visible')))
  await page.keyboard.press('Tab')
  await page.keyboard.press('Enter')
  await page.waitForURL(site + '/cancel?**')
  assert(page.url().startsWith(site + '/cancel?x=%41&'))
  const { x, error_id, error_description, error_uri, ...rest } = Object.fromEntries(new URL(page.url()).searchParams)
  assert.deepEqual(rest, failure)
  assert.deepEqual([error_id, error_description, error_uri], [made.id, 'The end user cancelled.', sandbox + '/errors/CONSENT_ENDUSER_DENIED'])
})

test('without JavaScript', async t => {
  const page = await tab(t, { javaScriptEnabled: false })
  const made = await session({ redirect_uri: site + '/plain', cancel_uri: site + '/cancel' })
  await page.goto(made.auth_url)
  assert.match(await page.getByRole('timer').textContent(), /min/)
  await approve(page).click()
  await page.waitForURL(site + '/plain?consent_id=*')
})

test('without URIs the page shows the outcome', async t => {
  const page = await tab(t)
  for (const [button, heading] of [[approve, 'Approved'], [cancel, 'No consent: CONSENT_ENDUSER_DENIED']]) {
    await page.goto((await session()).auth_url)
    await button(page).click()
    await page.getByRole('heading', { name: heading }).waitFor()
    assert.equal(page.url(), sandbox + '/') // the secret has left the address bar
  }
})

test('two tabs', async t => {
  const [first, second] = [await tab(t), await tab(t)]
  const made = await session({ redirect_uri: site + '/twice' })
  await first.goto(made.auth_url)
  await second.goto(made.auth_url)
  await approve(first).click()
  await first.waitForURL(site + '/twice?consent_id=*')
  const answer = second.waitForResponse(response => response.request().method() === 'POST')
  await approve(second).click()
  assert.equal((await answer).status(), 410)
  await gone(second).waitFor()
  assert.equal(visits.filter(visit => visit.url.startsWith('/twice')).length, 1)
})

test('expired while the page is open', async t => {
  const page = await tab(t)
  await page.clock.install()
  const made = await session()
  await page.goto(made.auth_url)
  await approve(page).waitFor()
  await forget(made)
  const answer = page.waitForResponse(made.auth_url)
  await page.clock.fastForward('31:00') // the countdown ends, and the page asks the server
  assert.equal((await answer).status(), 404)
  await gone(page).waitFor()
})

test('expired when the form is sent', async t => {
  const page = await tab(t)
  const made = await session({ redirect_uri: site + '/late' })
  await page.goto(made.auth_url)
  await forget(made)
  await approve(page).click()
  await gone(page).waitFor()
  assert(!visits.some(visit => visit.url.startsWith('/late')))
})

test('unknown', async t => {
  const page = await tab(t)
  for (const path of ['/?sess_id=', '/?sess_id=nobody']) {
    assert.equal((await page.goto(sandbox + path)).status(), 404)
    await gone(page).waitFor()
    assert.equal(await page.getByRole('button').count(), 0)
    await page.getByRole('link', { name: 'Create another session' }).click()
    await create(page).waitFor()
  }
})

test("an app's private-use scheme", async t => {
  for (const uri of ['com.example.app:/done', 'com.example.app://done?a=b']) {
    const page = await tab(t)
    const seen = await requested(page)
    await page.goto((await session({ redirect_uri: uri })).auth_url)
    await approve(page).click()
    const url = await seen(url => url.startsWith('com.example.app:'))
    assert.match(url.slice(uri.length), /^[?&]consent_id=[A-Z2-7]{26}$/)
    assert(url.startsWith(uri))
  }
})

test('a partner that redirects on', async t => {
  const page = await tab(t)
  const seen = await requested(page)
  await page.goto((await session({ redirect_uri: site + '/hop' })).auth_url)
  await approve(page).click()
  assert.match(await seen(url => url.startsWith('https://acme.invalid/')), /\?consent_id=/)
})

// requested resolves to the first URL the browser goes to, redirects included, that fits.
async function requested(page) {
  const devtools = await page.context().newCDPSession(page)
  await devtools.send('Network.enable')
  const urls = []
  let check = () => {}
  devtools.on('Network.requestWillBeSent', ({ request }) => check(urls.push(request.url)))
  return fits => new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error('the browser only went to ' + urls)), limit)
    check = () => {
      const url = urls.find(fits)
      if (url) resolve(url, clearTimeout(timer))
    }
    check()
  })
}

// framed opens the partner's page that embeds a session's consent page, or opens it as a popup.
async function framed(t, id, { at = site, popup = false, page } = {}) {
  page ??= await tab(t)
  const opened = popup && page.waitForEvent('popup')
  await page.goto(at + '/embed?' + encodeURIComponent(JSON.stringify({ authServer: sandbox, id, popup })))
  const message = async () => {
    await page.waitForFunction(() => window.messages.length > 0)
    return page.evaluate(() => window.messages)
  }
  return { page, frame: popup ? await opened : page.frameLocator('iframe'), message }
}

// Whoever frames the page gets the message, whatever the session's URIs are: a page of the sandbox's own site, and one
// of another site, where browsers keep cookies apart; whether or not it lets itself be named as a referrer.
test('framed: approve', async t => {
  for (const [at, members] of [
    [site, {}],
    [site, { redirect_uri: site + '/success?x=%41' }],
    [site, { redirect_uri: 'https://acme.invalid/success?x=%41', cancel_uri: 'https://acme.invalid/' }],
    [site.replace('localhost', '127.0.0.1'), { redirect_uri: 'com.example.app:/done?x' }],
    [site + '/embed-no-referrer', { redirect_uri: site + '/success?x=%41' }],
  ]) {
    const made = await session(members)
    const { page, frame, message } = await framed(t, made.session_id, { at })
    await approve(frame).click()
    const [{ trusted, data }, ...more] = await message()
    const redirectURL = members.redirect_uri && { redirectURL: members.redirect_uri + '&consent_id=' + data.consentID }
    assert.deepEqual([trusted, data, more], [true, { isCompleted: true, consentID: data.consentID, ...redirectURL }, []])
    assert.match(data.consentID, /^[A-Z2-7]{26}$/)
    await frame.getByRole('heading', { name: 'Approved' }).waitFor() // the frame stays
    assert.equal(page.url().split('?')[0], at + '/embed')
    assert.equal(await frame.locator('script').getAttribute('data-host'), new URL(at).origin) // by name, not *
  }
})

test('framed: no such session', async t => {
  const { frame, message } = await framed(t, 'nobody')
  const [{ trusted, data: { errorID, errorDescription, errorURI, ...rest } }] = await message()
  assert.deepEqual([trusted, rest], [true, { isCompleted: false, error: 'invalid_request', errorType: 'LINK_INVALID_SESSION' }])
  assert(errorID && errorDescription && URL.canParse(errorURI))
  await gone(frame).waitFor()
})

test('framed: used when the form is sent', async t => {
  const made = await session()
  const { frame, message } = await framed(t, made.session_id)
  await approve(frame).waitFor()
  await forget(made)
  await approve(frame).click()
  const [{ trusted, data }] = await message()
  assert.deepEqual([trusted, data.errorType], [true, 'LINK_INVALID_SESSION'])
})

test('framed: Redis fails, on load and at the click', async t => {
  for (const click of [false, true]) {
    const made = await session({ redirect_uri: site + '/never' })
    if (!click) await spoil(made)
    const { frame, message } = await framed(t, made.session_id)
    if (click) {
      await approve(frame).waitFor()
      await spoil(made)
      await approve(frame).click()
    }
    const [{ trusted, data: { errorID, errorDescription, errorURI, ...rest } }, ...more] = await message()
    assert.deepEqual([trusted, rest, more], [true, { isCompleted: false, error: 'server_error', errorType: 'LINK_INTERNAL_ERROR' }, []])
    assert(errorID && errorDescription && URL.canParse(errorURI))
    await frame.getByText(click ? 'Start again where you came from.' : 'Try again in a moment.').waitFor()
  }
})

for (const [name, path] of [['Chromium'], ['Firefox', firefoxPath]]) {
  test(`each outcome in ${name}`, { skip: path && !existsSync(path) && `there is no ${path}` }, async t => {
    const engine = path ? await firefox.launch({ executablePath: path, channel: 'moz-firefox', env: { ...process.env, HOME: folder }, timeout: 60_000 }) : browser
    if (path) t.after(() => engine.close())
    for (const way of ['redirect', 'frame', 'popup']) {
      await t.test(way, async t => {
        const page = await tab(t, { engine })
        for (const [button, error] of outcomes) {
          const made = await session({ redirect_uri: site + '/done?x=%41', cancel_uri: site + '/stop?x=%41' })
          const uri = sandbox + '/errors/' + error?.error_type
          let text // the consent's ID, or the error's description
          if (way === 'redirect') {
            await page.goto(made.auth_url)
            await decide(page, button)
            await page.waitForURL(site + (error ? '/stop?x=%41&*' : '/done?x=%41&*'))
            const { consent_id, error_description, ...rest } = Object.fromEntries(new URL(page.url()).searchParams)
            assert.deepEqual(rest, { x: 'A', ...(error && { ...error, error_id: made.id, error_uri: uri }) })
            text = error ? error_description : consent_id
          } else {
            const { frame, message } = await framed(t, made.session_id, { page, popup: way === 'popup' })
            await decide(frame, button)
            const [{ trusted, data: { consentID, errorDescription, ...rest } }, ...more] = await message()
            assert.deepEqual([trusted, rest, more], [true, error
              ? { isCompleted: false, error: error.error, errorType: error.error_type, errorID: made.id, errorURI: uri }
              : { isCompleted: true, redirectURL: `${site}/done?x=%41&consent_id=${consentID}` }, []])
            text = error ? errorDescription : consentID
            // A frame stays. A popup goes on, for an opener that waits for that.
            if (way === 'popup') await frame.waitForURL(rest.redirectURL ?? site + '/stop?x=%41&error=*')
            else await frame.getByRole('heading', { name: error ? 'No consent: ' + error.error_type : 'Approved' }).waitFor()
            assert.equal(page.url().split('?')[0], site + '/embed')
          }
          assert.match(text, error ? /^The .*[.]$/ : /^[A-Z2-7]{26}$/)
        }
      })
    }
  })
}

// A browser follows the last click: the second one must not take the place of the first.
test('a second click changes nothing', async t => {
  const page = await tab(t)
  const made = await session({ redirect_uri: site + '/slow' })
  await page.goto(made.auth_url)
  await approve(page).dblclick({ noWaitAfter: true })
  await page.waitForURL(site + '/slow?consent_id=*')
})

test('a popup whose opener is gone goes on', async t => {
  const { page, frame } = await framed(t, (await session({ redirect_uri: site + '/done' })).session_id, { popup: true })
  await page.close()
  await approve(frame).click()
  await frame.waitForURL(site + '/done?consent_id=*')
})

test('popup without URIs', async t => {
  const { page, frame, message } = await framed(t, (await session()).session_id, { popup: true })
  await approve(frame).click()
  const [{ trusted, data }, ...more] = await message()
  assert.deepEqual([trusted, data.isCompleted, more], [true, true, []])
  await frame.getByRole('heading', { name: 'Approved' }).waitFor()
  assert.equal(page.url().split('?')[0], site + '/embed')
})

// As the sandbox's own list: a link in a new tab has no opener to tell.
test('front page: create, open, approve, and back', async t => {
  const page = await tab(t)
  await page.goto(sandbox)
  await create(page).click()
  await page.getByText('"auth_url"').waitFor()
  const first = page.getByRole('listitem').filter({ hasText: 'waits for its end user' }).first()
  const id = await first.locator('span').nth(1).textContent()
  assert.match(id, /^[0-9a-z]{26}$/)
  assert.match(await first.textContent(), /dev for eu_\w+(30 min 0|29 min \d+) s left$/)
  const [consent] = await Promise.all([page.waitForEvent('popup'), open(page).click()])
  await approve(consent).waitFor()
  const mine = page.getByRole('listitem').filter({ hasText: id })
  await mine.getByText('its page is open').waitFor() // without reloading
  await approve(consent).click()
  await consent.getByRole('heading', { name: 'Back at the app: consent given' }).waitFor()
  assert.match(consent.url(), new RegExp('^' + sandbox + '/callback[?]consent_id=[A-Z2-7]{26}$'))
  await consent.getByRole('term').getByText('consent_id').waitFor()
  await mine.getByText('approved').waitFor()
  await consent.getByRole('link', { name: 'Create another session' }).click()
  await consent.getByRole('heading', { name: 'Try an auth session' }).waitFor()
})

test('front page: cancelled, by the printed command', async t => {
  const page = await tab(t)
  const { auth_url, id } = JSON.parse(execFileSync('bash', ['-c', command], { encoding: 'utf8' }))
  await page.goto(auth_url)
  await cancel(page).click()
  await page.getByRole('heading', { name: 'Back at the app: no consent' }).waitFor()
  assert.deepEqual(await page.getByRole('term').allTextContents(), ['error', 'error_type', 'error_id', 'error_description', 'error_uri'])
  await page.getByText(id).waitFor()
  await page.getByRole('link', { name: sandbox + '/errors/CONSENT_ENDUSER_DENIED' }).click()
  await page.getByRole('heading', { name: 'CONSENT_ENDUSER_DENIED' }).waitFor()
  await check(page, 'error page')
})

test('front page: with all members, by the copied command', async t => {
  const page = await tab(t, { permissions: ['clipboard-read', 'clipboard-write'] })
  await page.goto(sandbox)
  await page.getByText('Options').click()
  const members = { end_user_id: "it's", institution_id: '10', redirect_uri: 'https://acme.invalid/', cancel_uri: '', permissions: 'accounts, balances', arrangement_id: 'arr_1' }
  for (const [name, value] of Object.entries(members)) await page.getByLabel(name).fill(value)
  await create(page).click()
  await page.getByRole('button', { name: 'Copy as curl' }).click()
  await page.getByRole('button', { name: 'Copied' }).waitFor()
  const { auth_url } = JSON.parse(execFileSync('bash', ['-c', await page.evaluate(() => navigator.clipboard.readText())], { encoding: 'utf8' }))
  for (const url of [auth_url, await open(page).getAttribute('href')]) {
    await page.goto(url)
    assert.deepEqual(await page.getByRole('definition').allTextContents(), ['dev', "it's", '10', 'accounts, balances', 'arr_1'])
  }
})

test('front page: refused', async t => {
  const page = await tab(t)
  await page.goto(sandbox)
  await page.getByText('Options').click()
  await page.getByLabel('end_user_id').fill('')
  await page.getByLabel('permissions').fill('a a')
  await create(page).click()
  await page.getByRole('heading', { name: 'The service answered 400 Bad Request' }).waitFor()
  assert.match(await page.locator('.text').textContent(), /^end_user_id .*\npermissions .*$/)
  assert.equal(await open(page).count(), 0)
  await page.getByLabel('end_user_id').fill('eu_1') // what was asked is still in the form
  await page.getByLabel('permissions').fill('a')
  await page.keyboard.press('Enter')
  await open(page).waitFor()
})

test('front page: without JavaScript', async t => {
  const page = await tab(t, { javaScriptEnabled: false })
  await page.goto(sandbox)
  await create(page).click()
  await open(page).waitFor()
  await page.getByText('The curl command').click()
  await page.getByText(/Bearer eyJ[\w-]+\.[\w-]+\.[\w-]+'/).waitFor() // the whole token
  assert.equal(await page.getByRole('button', { name: 'Copy as curl' }).count(), 0)
})

test('front page: reloading creates nothing', async t => {
  const page = await tab(t)
  await page.goto(sandbox)
  await create(page).click()
  await open(page).waitFor()
  const sessions = async () => (await (await fetch(sandbox + '/sessions')).json()).map(row => row[1])
  const [url, before] = [page.url(), await sessions()]
  await page.reload()
  await open(page).waitFor()
  await page.goBack()
  await page.goForward()
  await open(page).waitFor()
  assert.deepEqual([page.url(), await sessions()], [url, before])
})

test('front page: an id stays selected while the list changes', async t => {
  const page = await tab(t)
  const made = await session()
  await page.goto(sandbox)
  const row = page.getByRole('listitem').filter({ hasText: made.id })
  await row.getByText(made.id).dblclick({ position: { x: 20, y: 8 } }) // the line is wider than its text
  assert.equal(await page.evaluate(() => getSelection().toString()), made.id)
  const changes = async () => { // the time that is left
    const before = await row.locator('span').nth(3).textContent()
    await page.waitForFunction(([id, text]) => document.getElementById(id).children[3].textContent !== text, [made.id, before])
  }
  const { id } = await session() // a row above
  await page.getByText(id).waitFor()
  await changes()
  await fetch(made.auth_url) // another line of its own
  await row.getByText('its page is open').waitFor()
  await changes()
  assert.equal(await page.evaluate(() => getSelection().toString()), made.id)
})

test('front page: the next step is in sight, and the one primary button', async t => {
  for (const viewport of [{ width: 1280, height: 900 }, { width: 375, height: 667 }]) {
    const page = await tab(t, { viewport })
    const primary = async target => {
      const { y, height } = await target.boundingBox()
      assert(y >= 0 && y + height <= viewport.height, `it ends at ${y + height} of ${viewport.height}`)
      assert.deepEqual(await page.evaluate(() => [...document.querySelectorAll('button, a.button')]
        .filter(each => getComputedStyle(each).backgroundColor !== getComputedStyle(document.querySelector('main')).backgroundColor)
        .map(each => each.textContent)), [await target.textContent()])
    }
    await page.goto(sandbox)
    await primary(create(page))
    await create(page).click()
    await open(page).waitFor()
    await primary(open(page))
  }
})

test('keyboard only, from the front page to an error page', async t => {
  let page = await tab(t)
  const press = async name => { // moves on to what has the name, and presses Enter
    for (let i = 0; i < 12; i++) {
      await page.keyboard.press('Tab')
      if (await page.evaluate(() => document.activeElement.matches(':focus-visible') && document.activeElement.textContent).then(text => text && text.includes(name))) {
        return page.keyboard.press('Enter')
      }
    }
    assert.fail('no way to ' + name)
  }
  await page.goto(sandbox)
  await press('Options')
  await press('Create a session')
  await open(page).waitFor()
  const opened = page.waitForEvent('popup')
  await press('Open the consent page')
  page = await opened
  await approve(page).waitFor()
  await press('Fail with')
  await press('CONSENT_OTP_FAILURE')
  await page.getByRole('heading', { name: 'Back at the app: no consent' }).waitFor()
  await press('/errors/CONSENT_OTP_FAILURE')
  await page.getByRole('heading', { name: 'CONSENT_OTP_FAILURE' }).waitFor()
  await press('Create another session')
  await create(page).waitFor()
})

test('the icon', async t => {
  const page = await tab(t)
  await page.goto(sandbox)
  assert.equal(await page.evaluate(async () => { // by the page's policy
    const image = new Image()
    image.src = document.querySelector('link[rel=icon]').href
    await image.decode()
    return image.complete
  }), true)
})

test('a session of days, hours, minutes', async t => {
  const page = await tab(t)
  const made = await session()
  let seconds
  await page.route(made.auth_url, async route => { // the script counts down from what the page says
    const response = await route.fetch()
    await route.fulfill({ response, body: (await response.text()).replace(/data-seconds="\d+"/, `data-seconds="${seconds}"`) })
  })
  for (const [left, want] of [[4 * 86400 + 23 * 3600 + 59, '4 days 23 h'], [86400 + 59, '1 day 0 h'], [3 * 3600 + 61, '3 h 1 min'], [61, '1 min 0 s']]) {
    seconds = left
    await page.goto(made.auth_url)
    await page.getByRole('timer').getByText(want, { exact: true }).waitFor()
  }
})

test('looks', async t => {
  const shots = process.env.SCREENSHOTS ?? folder
  mkdirSync(shots, { recursive: true })
  const wide = { width: 720, height: 700 }
  for (const [name, options] of Object.entries({
    light: { viewport: wide, colorScheme: 'light' },
    dark: { viewport: wide, colorScheme: 'dark' },
    phone: { viewport: { width: 360, height: 720 }, colorScheme: 'light', isMobile: true, hasTouch: true },
    long: { viewport: { width: 280, height: 900 }, colorScheme: 'dark', isMobile: true, hasTouch: true },
  })) {
    const page = await tab(t, options)
    const made = await session({ institution_id: '10', permissions: ['accounts', 'balances'], ...(name === 'long' && { end_user_id: 'u'.repeat(128), institution_id: 'i'.repeat(64) }) })
    await page.goto(made.auth_url)
    const png = await page.screenshot({ path: join(name === 'long' ? folder : shots, name + '.png') })
    assert(png.length > 5_000 && png.length < 150_000, `${name}.png has ${png.length} bytes`)
    await page.getByText('Fail with').click()
    await check(page, name)
    await approve(page).click()
    await page.getByRole('heading', { name: 'Approved' }).waitFor()
    await check(page, name)

    await page.goto(sandbox)
    await page.getByText('Options').click()
    await check(page, 'options-' + name)
    await create(page).click()
    await page.getByText('waits for its end user').first().waitFor()
    await page.screenshot({ path: join(name === 'long' ? folder : shots, `front-${name}.png`) })
    await page.getByText('The curl command').click()
    await check(page, 'front-' + name)
    await page.goto(await open(page).getAttribute('href'))
    await decide(page, 'CONSENT_TIMEOUT')
    await page.getByRole('heading', { name: 'Back at the app: no consent' }).waitFor()
    await page.screenshot({ path: join(name === 'long' ? folder : shots, `callback-${name}.png`) })
    await check(page, 'callback-' + name)
  }
  const { page, frame } = await framed(t, (await session()).session_id)
  await approve(frame).waitFor()
  await page.setViewportSize({ width: 560, height: 670 })
  await page.screenshot({ path: join(shots, 'frame.png') })
})

// check looks for what axe-core knows to hinder people, contrast included, for targets under 48 px, and for what does
// not fit the window.
async function check(page, name) {
  await page.evaluate(axe)
  const { violations } = await page.evaluate(() => window.axe.run())
  assert.deepEqual(violations.map(({ id, nodes }) => [name, id, nodes.map(node => node.html)]), [])
  assert.deepEqual(await page.evaluate(() => [...document.querySelectorAll('button, a.button, summary, input')]
    .filter(each => each.checkVisibility() && each.getBoundingClientRect().height < 48).map(each => each.outerHTML)), [])
  assert(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${name} scrolls sideways`)
}
