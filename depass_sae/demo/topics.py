"""What SmolLM2 is asked to write about, and in which kinds of text: the lists behind ``text/written.jsonl.xz``."""

from __future__ import annotations

_TOPICS = """
climate policy in coastal cities; how rising temperatures change farming; urban planning and public transport; green roofs and
city heat; sustainable building materials; a city that plans for floods; carbon emissions and global warming; renewable energy
and the power grid; solar panels on schools; wind farms at sea; deforestation and its consequences; the environmental impact of
fast fashion; recycling and waste management; biodiversity loss and conservation; water shortages and droughts; sea level and
island nations; environmental law; electric buses and cleaner air; bicycle lanes and walkable neighborhoods; affordable housing
and zoning; parks and public space; environmental assessment of a new road; community gardens; the ozone layer; ocean plastic;
coral reefs; glaciers and melting ice; wildfires; soil and composting; sustainable development goals; a simple breakfast;
an easy weeknight dinner; baking bread at home; a trendy brunch cafe; salads with a twist; roasted vegetables with honey;
chocolate cake; homemade pasta; spicy noodles; a smoothie for busy mornings; grilled fish with lemon; vegetarian tacos;
the perfect cup of coffee; tea and its traditions; street food; cooking with spices; making jam; a holiday dinner; cheese and
wine; the history of the sandwich; avoiding food waste; eggs, eight ways; a picnic; soups for winter; ice cream; simplicity in
design; minimalism and a tidy home; a plain white shirt; simple tools that last; a minimalist apartment; typography; furniture
design; the beauty of simple things; a user interface that gets out of the way; plain language in government; an elegant yet
inexpensive watch; interior decoration; supply and demand; inflation and interest rates; how markets set prices; monopoly and
competition; international trade and tariffs; unemployment; the theory of the firm; central banks; game theory; behavioral
economics; taxes and public goods; the stock market; economic growth in developing countries; labor markets and wages; poverty
and inequality; the great depression; cryptocurrency; personal budgeting; microeconomics for beginners; macroeconomic policy;
saving for retirement; a small business plan; start-ups and venture capital; buying a first house; insurance; consumer
behavior; globalization; the housing market; the price of oil; currency exchange; advertising; customer service; leadership;
remote work; job interviews; writing a resume; project management; negotiation; a company merger; labor unions; supply chains;
quality control in factories; entrepreneurship; the human heart; vaccines; antibiotics and resistance; sleep; diabetes; mental
health; depression and anxiety; exercise for older people; running a marathon; yoga; nutrition and vitamins; pregnancy; dental
care; a visit to the doctor; cancer research; the immune system; the brain and memory; allergies; nursing; first aid; public
health; hospitals in rural areas; smoking; vision and glasses; genetics and DNA; evolution by natural selection; cells and
mitochondria; photosynthesis; bacteria and viruses; dinosaurs; whales; honey bees; wolves; migrating birds; cats; training a
puppy; elephants; insects; spiders; horses; fish tanks; the rain forest; deserts; mountains and how they form; earthquakes;
volcanoes; the water cycle; clouds and weather forecasts; hurricanes; the moon; Mars; black holes; the big bang; stars and
galaxies; space stations; telescopes; gravity; light and color; electricity and magnetism; atoms and molecules; chemical
reactions; the periodic table; acids and bases; heat and temperature; sound waves; quantum mechanics; relativity; nuclear
power; semiconductors; lasers; materials science; bridges and engineering; airplanes; trains; ships; cars and engines; electric
cars; bicycles; robots; 3D printing; drones; batteries; the history of computers; programming in Python; databases; the
internet; cybersecurity; passwords; social media; artificial intelligence; machine learning; privacy; mobile phones; video
games; open source software; web design; cloud computing; algorithms; sorting and searching; operating systems; a software bug;
spreadsheets; fractions; geometry; probability and statistics; calculus; linear algebra; prime numbers; famous
mathematicians; logic and paradoxes; the scientific method; ancient Egypt; ancient Greece; the Roman Empire; the Middle Ages;
the Renaissance; the Black Death; the French Revolution; the American Civil War; the industrial revolution; World War I; World
War II; the Cold War; the civil rights movement; colonialism in Africa; the Ottoman Empire; the Silk Road; China's dynasties;
Japan and the samurai; India's independence; Latin American history; Vikings; explorers; the printing press; slavery and
abolition; women's suffrage; immigration; the constitution; elections and voting; parliament; the supreme court; human
rights; police and justice; crime and prisons; a court case; contracts; copyright; international law; the United Nations; the
European Union; war and peace; refugees; diplomacy; local government; corruption; freedom of speech; philosophy and ethics;
Plato and Socrates; free will; happiness; stoicism; religion and society; Buddhism; Christianity; Islam; Judaism; Hinduism;
myths and legends; psychology of habits; child development; parenting; teenagers; friendship; marriage; divorce; aging
parents; grief; dreams; motivation; creativity; learning a language; teaching children to read; schools and exams; university
life; online courses; libraries; homework; poetry; Shakespeare; novels and plots; science fiction; fairy tales; detective
stories; comic books; film and cinema; a movie review; theater; television series; photography; painting; sculpture;
architecture; museums; classical music; jazz; rock bands; hip hop; learning the guitar; dance; opera; fashion; jewelry;
knitting; gardening; woodworking; home repairs; plumbing; painting a room; moving house; cleaning; laundry; football; baseball;
basketball; tennis; swimming; skiing; chess; golf; the Olympic Games; boxing; hiking; camping; fishing; sailing; surfing; a
trip to Paris; Tokyo; New York; London; a safari in Kenya; Australia; Canada in winter; Italy by train; hotels; airports; a
lost suitcase; budget travel; cruise ships; beaches; a family reunion; a birthday party; a wedding; holidays and festivals;
Christmas; a rainy day; an old house; a lost dog; a letter from a friend; a stranger on a train; a night in the forest; a
haunted house; a dragon and a village; a robot that learns to feel; a detective in a small town; a girl who finds a map; an
old fisherman; a soldier coming home; a queen and her advisors; time travel; a spaceship far from home; a secret door; two
brothers; a teacher's last day; a market in the desert; a thief with a conscience; the first day of school; neighbors;
volunteering; charity; farming and tractors; milk and cows; forests and timber; mining; steel; textiles; shipping containers;
bank accounts; a complaint about a delivery; a thank-you note; an apology; a request for leave; a meeting agenda; instructions
for a washing machine; safety at work; a product launch; a laptop; headphones; a vacuum cleaner; running shoes; a camera; a
backpack; a restaurant; a hotel stay; a mattress; a coffee maker; a novel; noise in the city; traffic; emergency services;
fire safety; road accidents; weather warnings; astronomy for beginners; maps and navigation; time zones; calendars; measurement
and units; language change; slang; grammar and punctuation; handwriting; newspapers; journalism and sources; rumors and fake
news; public speaking; humor; proverbs; games for children; puzzles; magic tricks; collecting stamps; antiques; coins; toys
"""

TOPICS: tuple[str, ...] = tuple(" ".join(topic.split()) for topic in _TOPICS.split(";"))

INSTRUCTIONS: tuple[str, ...] = (
    "Write a short essay about {topic}.",
    "Write a newspaper report about {topic}, with names and quotes.",
    "Write a passage of a textbook about {topic}.",
    "Write a personal blog post about {topic}.",
    "Write a customer's review that has to do with {topic}.",
    "Write a dialogue between two people about {topic}.",
    "Write a short story that has to do with {topic}.",
    "Write an email to a colleague about {topic}.",
    "Answer a question in a forum about {topic}. Begin with the answer.",
    "Write the encyclopedia entry on {topic}.",
    "Write the abstract of a research paper about {topic}.",
    "Write an advertisement that has to do with {topic}.",
    "Explain {topic} to a ten-year-old.",
    "Give practical advice on {topic}, step by step.",
    "Summarize what is known about {topic} in one paragraph.",
    "Write an opinion column about {topic}.",
    "Write a speech about {topic}.",
    "Tell an anecdote about {topic} in the first person.",
    "Write three surprising facts about {topic} and explain them.",
    "Write a letter to the editor about {topic}.",
    "Compare two views of {topic}.",
    "Describe a scene that has to do with {topic}.",
    "Write a report for a city council about {topic}.",
    "Write a recipe or a set of instructions that has to do with {topic}.",
    "Write a short Python program that has to do with {topic}, with comments.",
    "Write the minutes of a meeting about {topic}.",
)
"""Requests in the chat format."""

OPENINGS: tuple[str, ...] = (
    "In this paper, we study {topic}.",
    "{Topic} has long been",
    "When it comes to {topic},",
    "Last week, I was thinking about {topic}.",
    "What is there to say about {topic}?",
    "According to a new report on {topic},",
    "I never cared much for {topic}, but",
    "Few people know how much {topic}",
    "This article explores {topic} and",
    "The history of {topic}",
    "“Let me tell you about {topic},” she said.",
    "A simple yet effective approach to {topic}:",
    "In the field of {topic},",
)
"""Beginnings that the model goes on from, as a text of its own. They stay in the text."""
